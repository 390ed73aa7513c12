"""One acting step of a whole policy over linear state-space layers (S4, S4D), for inference.

Return-to-go, observation and previous action in, action out: what plan.py writes down and
naive.py computes. At one row a step is nearly all dispatch, so the fast paths do the same in fewer
operations: "torch" in about 80, views included, "cpu" (C++, compiled on demand) in one, "graph" (a
recorded CUDA graph) in one launch between copies.
"""

import functools
import logging
from typing import Literal, Protocol, get_args

from torch import Tensor

from decision_s4.kernels.policy_step import naive
from decision_s4.kernels.policy_step.eager import EagerStep
from decision_s4.kernels.policy_step.graph import GraphStep
from decision_s4.kernels.policy_step.plan import Affine, Head, Inputs, Layer, Mlp, Norm, Plan

__all__ = ["Affine", "Head", "Impl", "Inputs", "Layer", "Mlp", "Norm", "Plan", "PolicyStep"]
__all__ += ["make_policy_step"]

Impl = Literal["naive", "torch", "cpu", "graph"]
LOG = logging.getLogger(__name__)


class PolicyStep(Protocol):
    """A plan, ready to step. Neither inputs nor state are written; not differentiable."""

    def __call__(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """State: (B, D, n, 2) a layer, real and imaginary parts.

        Returns:
            (head's output (B, A) or, without a head, features (B, D); the new state).
        """
        ...


def make_policy_step(plan: Plan, impl: Impl | None = None) -> PolicyStep:
    """The step of `plan`, which may keep its tensors: leave them as they are.

    Args:
        plan: float32 and on the CPU for "cpu", on CUDA for "graph".
        impl: None is "graph" on CUDA, else "torch". "cpu" compiles its library the first time it
            is ever asked for (about half a minute, logged); where that fails, it warns and is
            "torch".

    Raises:
        ValueError: for an unknown `impl`, or a plan of a type or a device that it does not take.
    """
    if impl not in (None, *get_args(Impl)):
        known = "'naive', 'torch', 'cpu' or 'graph'"
        raise ValueError(f"policy_step: impl '{impl}' is unknown; use {known}")
    impl = impl or _fastest(plan.shift.device.type)
    if impl == "naive":
        return lambda inputs, state: naive.step(plan, inputs, state)
    if impl == "cpu":
        from decision_s4.kernels.policy_step.cpu import make_cpu_step  # knows how to compile

        return make_cpu_step(plan) or EagerStep(plan)
    if impl == "graph":
        return GraphStep(plan)
    return EagerStep(plan)


@functools.cache
def _fastest(device: str) -> Impl:
    impl: Impl = "graph" if device == "cuda" else "torch"
    LOG.info("policy_step: '%s' acts on %s", impl, device)
    return impl
