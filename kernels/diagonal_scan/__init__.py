"""Diagonal linear recurrence with resets, one system shared by all rows.

    x_t = a ∘ x_{t−1} + u_t

The core of S5 (Smith, Warrington, Linderman, arXiv 2208.04933, section 2.2) and of the linear
recurrent unit (Orvieto et al., arXiv 2303.06349, section 3): what goes in and what is read out
are matrices around it.
"""

from typing import Literal

from torch import Tensor

from decision_s4.kernels.choice import fastest
from decision_s4.kernels.diagonal_scan import chunked, naive
from decision_s4.kernels.diagonal_scan.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["diagonal_scan", "diagonal_step"]

diagonal_step = naive.step


def diagonal_scan(
    u: Tensor,
    a: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Literal["naive", "torch", "triton"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable in `u`, `a` and `state`.

    Args:
        u: (B, T, P) input, complex or real.
        a: (P,) poles, of the type of `u`; |a| <= 1 keeps it stable.
        state: (B, P) carried in, of the type of `u`.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "triton" is fused for CUDA
            (complex64; differentiable once). None takes "triton" on CUDA for what it takes, else
            "torch".

    Returns:
        (x (B, T, P), final state (B, P)). x is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what "triton" does not take.
    """
    if impl not in (None, "naive", "torch", "triton"):
        known = "'naive', 'torch' or 'triton'"
        raise ValueError(f"diagonal_scan: impl '{impl}' is unknown; use {known}")
    chosen = impl or fastest("diagonal_scan", u.device, misfit(u))
    if chosen == "triton":
        from decision_s4.kernels.diagonal_scan import triton  # needs Triton

        return triton.scan(u, a, state, packing)
    run = naive.scan if chosen == "naive" else chunked.scan
    return run(u, a, state, packing)
