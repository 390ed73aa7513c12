"""The almost-linear recurrence over packed rows: some units pass as they are, some through ReLU.

    z_t = A ∘ z_{t−1} + W Φ(z_{t−1}) + u_t,   Φ(z) = (z_1 … z_L, relu(z_{L+1}) … relu(z_M))

Brenner et al., "Almost-Linear RNNs Yield Highly Interpretable Symbolic Codes in Dynamical Systems
Reconstruction", arXiv 2410.14240, equation 4. Shapes: B rows, T steps, M units.
"""

from typing import Literal

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.almost_linear import naive, ranks
from decision_s4.kernels.almost_linear.misfit import misfit
from decision_s4.kernels.packing import Packing

__all__ = ["almost_linear", "almost_linear_step", "fused"]

almost_linear_step = naive.step
IMPLS = ("naive", "torch", "cpu", "triton")


def almost_linear(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    linear: int,
    state: Tensor,
    packing: Packing,
    impl: Literal["naive", "torch", "cpu", "triton"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; differentiable in every floating-point input.

    Args:
        u: (B, T, M) input.
        decay: (M,) A.
        weight: (M, M) W.
        linear: L, how many units pass as they are.
        state: (B, M) carried in.
        packing: where episodes start; the state is zero before each start.
        impl: "naive" is the equation as a loop, "torch" a loop over the k-th steps of all episodes,
            "cpu" that loop in C++ (compiled at its first use), "triton" on CUDA a loop that keeps W
            in registers (up to 128 units), both once differentiable; None takes the fastest that
            can and logs it once.

    Returns:
        (z (B, T, M), final state (B, M)). z is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or tensors that do not fit it.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *IMPLS):
        raise ValueError(f"almost_linear: impl '{impl}' is unknown; use {', '.join(IMPLS)}")
    chosen = impl or _fastest(u, weight, state)
    if chosen == "cpu":
        from decision_s4.kernels.almost_linear import cpu  # compiles

        return cpu.scan(u, decay, weight, linear, state, packing)
    if chosen == "triton":
        from decision_s4.kernels.almost_linear import triton  # needs Triton

        return triton.scan(u, decay, weight, linear, state, packing)
    run = {"naive": naive.scan, "torch": ranks.scan}[chosen]
    return run(u, decay, weight, linear, state, packing)


def _fastest(u: Tensor, weight: Tensor, state: Tensor) -> str:
    if not state.is_cuda:
        return choice.fastest_on_cpu("almost_linear", state.device.type, state.dtype)
    return choice.fastest("almost_linear", u.device, misfit(u, weight))


def fused(weight: Tensor, device: torch.device) -> bool:
    """Whether the fused kernels run where nothing is named."""
    return choice.fastest("almost_linear", device, misfit(weight, weight)) == "triton"
