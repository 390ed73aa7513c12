"""State space duality: Mamba-2's selective state space model with one scalar decay a head.

    H_t = a_t H_{t−1} + Δ_t x_t B_tᵀ,   y_t = H_t C_t,   a_t = exp(Δ_t A)

H is (P, N) in each head; B and C are shared by the heads (Dao and Gu, "Transformers are SSMs",
arXiv 2405.21060, sections 6 and 7).
"""

from typing import Literal, get_args

from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.gated_linear.misfit import misfit
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import chunked, naive

__all__ = ["ssd", "ssd_step"]

Impl = Literal["naive", "torch", "cpu", "triton"]

ssd_step = naive.step


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
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
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is gated_linear's
            loop in C++ (compiled at its first use; differentiable once), "triton" is
            gated_linear's, fused for CUDA (N up to 128; differentiable once). None takes "cpu" on
            the CPU where it compiles (float32 and float64), "triton" on CUDA for what it takes,
            else "torch".

    Returns:
        (y (B, T, H, P), final state (B, H, P, N)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"ssd: impl '{impl}' is unknown; use {', '.join(get_args(Impl))}")
    chosen = impl or _fastest(x, B, C, state)
    if chosen == "cpu":
        from decision_s4.kernels.ssd import cpu  # compiles

        return cpu.scan(x, delta, A, B, C, state, packing)
    if chosen == "triton":
        from decision_s4.kernels.ssd import triton  # needs Triton

        return triton.scan(x, delta, A, B, C, state, packing)
    run = naive.scan if chosen == "naive" else chunked.scan
    return run(x, delta, A, B, C, state, packing)


def _fastest(x: Tensor, B: Tensor, C: Tensor, state: Tensor) -> str:
    if not state.is_cuda:
        return choice.fastest_on_cpu("ssd", state.device.type, state.dtype)
    return choice.fastest("ssd", x.device, misfit(C, B, x))
