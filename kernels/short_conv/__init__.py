"""Short causal depthwise convolution over packed rows, with the last inputs as its state.

    y_t = bias + Σ_{k<W} weight[:, W−1−k] ⊙ x_{t−k}

Taps before an episode's start are zero. Mamba (arXiv 2312.00752, section 3.4) and most gated
linear layers put one before their recurrence.
"""

from typing import Literal, get_args

from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import naive, shifted
from decision_s4.kernels.short_conv.misfit import misfit

__all__ = ["short_conv", "short_conv_step"]

Impl = Literal["naive", "torch", "cpu", "triton"]

short_conv_step = naive.step


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    packing: Packing,
    impl: Impl | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve packed rows; differentiable in `x`, `weight`, `bias` and `state`.

    Args:
        x: (B, T, D) input.
        weight: (D, W), the tap of x_t last, as in `torch.nn.Conv1d`.
        bias: (D,) or None.
        state: (B, D, W − 1) last inputs of the episode carried in, oldest first.
        packing: where episodes start; steps that are not valid are skipped altogether.
        impl: "naive" is the equation as a loop, "torch" runs anywhere, "cpu" is C++ (float32 and
            float64, compiled at its first use), "triton" is fused for CUDA (bfloat16 and float32,
            up to 8 taps); both are differentiable once. None takes the fastest that can.

    Returns:
        (y (B, T, D), final state (B, D, W − 1)). y is 0 at steps that are not valid.

    Raises:
        ValueError: for an unknown `impl`, or what it does not take.
        RuntimeError: for "cpu" where the machine has no compiler.
    """
    if impl not in (None, *get_args(Impl)):
        raise ValueError(f"short_conv: impl '{impl}' is unknown; use {', '.join(get_args(Impl))}")
    chosen = impl or _fastest(x, weight)
    if chosen == "triton":
        from decision_s4.kernels.short_conv import triton  # needs Triton

        return triton.conv(x, weight, bias, state, packing)
    if chosen == "cpu":
        from decision_s4.kernels.short_conv import cpu  # compiles

        return cpu.conv(x, weight, bias, state, packing)
    run = naive.conv if chosen == "naive" else shifted.conv
    return run(x, weight, bias, state, packing)


def _fastest(x: Tensor, weight: Tensor) -> str:
    if not x.is_cuda:
        return choice.fastest_on_cpu("short_conv", x.device.type, x.dtype)
    return choice.fastest("short_conv", x.device, misfit(x, weight))
