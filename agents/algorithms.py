"""Algorithms by name: the settings that each has, and what runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from decision_s4.agents.options import RunOptions
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.agents.value_training import (
    IQLConfig,
    IQLTraining,
    TD3BCConfig,
    TD3BCTraining,
)
from decision_s4.envs.errors import UserError, nearest


class Algorithm(NamedTuple):
    """One algorithm."""

    config: type[RunOptions]
    """The dataclass of its settings."""
    run: Callable[..., Training]
    """Makes a run of (settings, trajectories, task, device)."""


SEQUENCES = Algorithm(TrainConfig, Training)
ALGORITHMS: dict[str, Algorithm] = {
    "decision-s4": SEQUENCES,
    "decision-transformer": SEQUENCES,
    "decision-mamba": SEQUENCES,
    "bc": SEQUENCES,
    "10%-bc": SEQUENCES,
    "td3-bc": Algorithm(TD3BCConfig, TD3BCTraining),
    "iql": Algorithm(IQLConfig, IQLTraining),
}
"""By the name that --algo takes; configs/<name>.yaml holds what each changes of the defaults."""


def algorithm_of(name: Any) -> Algorithm:
    """The algorithm of a name. Raises UserError, naming the nearest, for an unknown one."""
    if name not in ALGORITHMS:
        raise UserError(f"--algo: unknown algorithm '{name}'{nearest(str(name), ALGORITHMS)}")
    return ALGORITHMS[name]
