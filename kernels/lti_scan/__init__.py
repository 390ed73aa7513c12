"""Linear time-invariant scan, one single-input single-output system a channel, with resets.

    x_t = Ā x_{t−1} + b u_t,   y_t = 2 Re(c · x_t),   Ā = diag(a) − w (v · x + conj)

x holds one of each conjugate pair. Without (w, v) the system is diagonal (S4D); with them it is
diagonal plus low rank (S4: Gu, Goel, Ré, "Efficiently Modeling Long Sequences with Structured
State Spaces", arXiv 2111.00396, section 3).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.lti_scan import chunked, naive
from decision_s4.kernels.lti_scan.misfit import misfit
from decision_s4.kernels.lti_scan.prepared import Prepared, prepare
from decision_s4.kernels.lti_scan.system import System, transition
from decision_s4.kernels.packing import Packing

__all__ = [
    "Impl",
    "Prepared",
    "System",
    "fastest",
    "lti_scan",
    "lti_step",
    "prepare",
    "transition",
]

Impl = Literal["naive", "torch", "cpu", "triton"]

lti_step = naive.step
LONG = 24_576  # steps that a program walks in the time that torch takes for any number


def fastest(system: System, kind: torch.dtype = torch.float32, steps: int = 1) -> str:
    """What runs `system` on rows of `steps` inputs of a `kind` where nothing is named."""
    if not system.a.is_cuda:
        return choice.fastest_on_cpu("lti_scan", system.a.device.type, kind)
    reason = misfit(system, kind)
    if reason is None and steps > LONG:
        reason = f"is faster on rows of more than {LONG:,} steps"
    return choice.fastest("lti_scan", system.a.device, reason)


def lti_scan(
    u: Tensor,
    system: System,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
    prepared: Prepared | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the system over packed rows; differentiable in `u`, `system` and `state`.

    Args:
        u: (B, T, H) input.
        system: the discretised system of each of the H channels.
        state: (B, H, n, 2) carried in, real and imaginary parts of x.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is the loop in C++
            (compiled at its first use), "triton" is fused for CUDA (float32, up to 64 states); both
            are differentiable once. None takes "cpu" on the CPU where it compiles, "triton" on CUDA
            for what it takes, rows up to `LONG`, else "torch".
        prepared: `prepare(system)` of the same a, b, w and v, of which "triton" then has no
            gradient.

    Returns:
        (y (B, T, H), final state (B, H, n, 2)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"lti_scan: impl '{impl}' is unknown; use {', '.join(get_args(Impl))}")
    chosen = impl or fastest(system, u.dtype, u.shape[1])
    if chosen == "triton":
        from decision_s4.kernels.lti_scan import triton  # needs Triton

        return triton.scan(u, system, state, packing, prepared)
    if chosen == "cpu":
        from decision_s4.kernels.lti_scan import cpu  # compiles

        return cpu.scan(u, system, state, packing)
    run = naive.scan if chosen == "naive" else chunked.scan
    return run(u, system, state, packing)
