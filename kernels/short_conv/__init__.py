"""Short causal depthwise convolution over packed rows, with the last inputs as its state.

    y_t = bias + Σ_{k<W} weight[:, W−1−k] ⊙ x_{t−k}

Taps before an episode's start are zero. Mamba (arXiv 2312.00752, section 3.4) and most gated
linear layers put one before their recurrence.
"""

from typing import Literal

from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import naive, shifted
from decision_s4.kernels.short_conv.misfit import misfit

__all__ = ["short_conv", "short_conv_step"]

short_conv_step = naive.step


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    packing: Packing,
    impl: Literal["naive", "torch", "triton"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve packed rows; differentiable in `x`, `weight`, `bias` and `state`.

    Args:
        x: (B, T, D) input.
        weight: (D, W), the tap of x_t last, as in `torch.nn.Conv1d`.
        bias: (D,) or None.
        state: (B, D, W − 1) last inputs of the episode carried in, oldest first.
        packing: where episodes start; steps that are not valid are skipped altogether.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "triton" is fused for CUDA
            (bfloat16 and float32, up to 8 taps; differentiable once). None takes "triton" on CUDA
            for what it takes, else "torch".

    Returns:
        (y (B, T, D), final state (B, D, W − 1)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what "triton" does not take.
    """
    if impl not in (None, "naive", "torch", "triton"):
        known = "'naive', 'torch' or 'triton'"
        raise ValueError(f"short_conv: impl '{impl}' is unknown; use {known}")
    impl = impl or choice.fastest("short_conv", x.device, misfit(x, weight))
    if impl == "triton":
        from decision_s4.kernels.short_conv import triton  # needs Triton

        return triton.conv(x, weight, bias, state, packing)
    run = naive.conv if impl == "naive" else shifted.conv
    return run(x, weight, bias, state, packing)
