"""Diagonal linear recurrence with resets, one system shared by all rows.

    x_t = a ∘ x_{t−1} + u_t

The core of S5 (Smith, Warrington, Linderman, arXiv 2208.04933, section 2.2) and of the linear
recurrent unit (Orvieto et al., arXiv 2303.06349, section 3): what goes in and what is read out
are matrices around it.
"""

from typing import Literal, get_args

from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.diagonal_scan import chunked, naive
from decision_s4.kernels.diagonal_scan.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["diagonal_scan", "diagonal_step"]

Impl = Literal["naive", "torch", "cpu", "triton"]

diagonal_step = naive.step


def diagonal_scan(
    u: Tensor,
    a: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable in `u`, `a` and `state`.

    Args:
        u: (B, T, P) input, complex or real.
        a: (P,) poles, of the type of `u`; |a| <= 1 keeps it stable.
        state: (B, P) carried in, of the type of `u`.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is the loop in C++
            (compiled at its first use), "triton" is fused for CUDA (complex64); both are
            differentiable once. None takes the fastest that can.

    Returns:
        (x (B, T, P), final state (B, P)). x is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        known = ", ".join(get_args(Impl))
        raise ValueError(f"diagonal_scan: impl '{impl}' is unknown; use {known}")
    chosen = impl or _fastest(u)
    if chosen == "triton":
        from decision_s4.kernels.diagonal_scan import triton  # needs Triton

        return triton.scan(u, a, state, packing)
    if chosen == "cpu":
        from decision_s4.kernels.diagonal_scan import cpu  # compiles

        return cpu.scan(u, a, state, packing)
    run = naive.scan if chosen == "naive" else chunked.scan
    return run(u, a, state, packing)


def _fastest(u: Tensor) -> str:
    if not u.is_cuda:
        of = u.device.type, u.dtype
        return choice.fastest_on_cpu("diagonal_scan", *of, types=choice.COMPLEX)
    return choice.fastest("diagonal_scan", u.device, misfit(u))
