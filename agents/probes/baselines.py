"""What "absent" means for an input. Shapes: K baselines, W steps, F features.

Zero is absurd for a return-to-go, so the default is what other episodes held at the same step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.agents.probes.context import Context
from decision_s4.envs.errors import UserError, nearest


def _episodes(context: Context) -> Tensor:
    return context.others


def _mean(context: Context) -> Tensor:
    mean = context.others.mean((0, 1))
    return mean.expand(1, *context.features.shape)


def _hold(context: Context) -> Tensor:
    x = context.features
    return torch.cat([x[:1], x[:-1]])[None]


BASELINES: dict[str, tuple[str, Callable[[Context], Tensor]]] = {
    "episodes": ("the same time step of other episodes", _episodes),
    "mean": ("the mean over steps and other episodes", _mean),
    "hold": ("the step before", _hold),
}
"""By name: words for a person, and the (K, W, F) values."""


def baseline(kind: str, context: Context) -> Tensor:
    """(K, W, F). Raises UserError for an unknown kind."""
    if kind not in BASELINES:
        raise UserError(f"baseline '{kind}' is unknown{nearest(kind, BASELINES)}")
    return BASELINES[kind][1](context)
