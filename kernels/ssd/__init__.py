"""State space duality: Mamba-2's selective state space model with one scalar decay a head.

    H_t = a_t H_{t−1} + Δ_t x_t B_tᵀ,   y_t = H_t C_t,   a_t = exp(Δ_t A)

H is (P, N) in each head; B and C are shared by the heads (Dao and Gu, "Transformers are SSMs",
arXiv 2405.21060, sections 6 and 7).
"""

from typing import Literal

from torch import Tensor

from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import chunked, naive

__all__ = ["ssd", "ssd_step"]

ssd_step = naive.step


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Literal["naive", "torch"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over packed rows; differentiable in every float input.

    Args:
        x: (B, T, H, P) input of H heads.
        delta: (B, T, H) time steps, at least 0.
        A: (H,) poles, at most 0.
        B: (B, T, N) input vector.
        C: (B, T, N) read-out vector.
        state: (B, H, P, N) carried in.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop; None takes the fastest.

    Returns:
        (y (B, T, H, P), final state (B, H, P, N)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`.
    """
    if impl not in (None, "naive", "torch"):
        raise ValueError(f"ssd: impl '{impl}' is unknown; use 'naive' or 'torch'")
    run = naive.scan if impl == "naive" else chunked.scan
    return run(x, delta, A, B, C, state, packing)
