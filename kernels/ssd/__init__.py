"""State space duality: Mamba-2's selective state space model with one scalar decay a head.

    H_t = a_t H_{t−1} + Δ_t x_t B_tᵀ,   y_t = H_t C_t,   a_t = exp(Δ_t A)

H is (P, N) in each head; B and C are shared by the heads (Dao and Gu, "Transformers are SSMs",
arXiv 2405.21060, sections 6 and 7).
"""

from typing import Literal

from torch import Tensor

from decision_s4.kernels.choice import fastest
from decision_s4.kernels.gated_linear.misfit import misfit
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
    impl: Literal["naive", "torch", "triton"] | None = None,
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
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "triton" is gated_linear's,
            fused for CUDA (N up to 128; differentiable once). None takes "triton" on CUDA for what
            it takes, else "torch".

    Returns:
        (y (B, T, H, P), final state (B, H, P, N)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what "triton" does not take.
    """
    if impl not in (None, "naive", "torch", "triton"):
        raise ValueError(f"ssd: impl '{impl}' is unknown; use 'naive', 'torch' or 'triton'")
    chosen = impl or fastest("ssd", x.device, misfit(C, B, x))
    if chosen == "triton":
        from decision_s4.kernels.ssd import triton  # needs Triton

        return triton.scan(x, delta, A, B, C, state, packing)
    run = naive.scan if chosen == "naive" else chunked.scan
    return run(x, delta, A, B, C, state, packing)
