"""short_conv fused for CUDA: one launch forward, one backward and a sum of parts. Once
differentiable.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.choice import check
from decision_s4.kernels.packing import Packing, Walk
from decision_s4.kernels.short_conv import triton_kernels as kernels
from decision_s4.kernels.short_conv.misfit import misfit

TIME, CHANNELS = 16, 32  # of a tile; (32, 64) took twice as long on an H200, (64, 64) six times


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `short_conv`."""
    check("short_conv", x.device, misfit(x, weight))
    with torch.cuda.device_of(x):
        return FusedConv.apply(x, weight, bias, state, packing.walk)


class FusedConv(torch.autograd.Function):
    """The arguments of `short_conv`, the packing as a walk."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        x, weight, state = x.contiguous(), weight.contiguous(), state.contiguous()
        bias = bias if bias is None else bias.contiguous()
        kind = torch.result_type(x, weight)
        y = (
            x.new_zeros(x.shape, dtype=kind)
            if walk.order is not None
            else x.new_empty(x.shape, dtype=kind)
        )
        final = state.new_empty(state.shape, dtype=torch.result_type(state, x))
        kernels.forward[_grid(x)](
            x, weight, x if bias is None else bias, state, *walk.pointers, y, final,
            x.shape[1], x.shape[2], HAS_BIAS=bias is not None, **_constants(weight, walk),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, state)
        ctx.walk, ctx.bias = walk, None if bias is None else bias.dtype
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, state), walk = ctx.saved_tensors, ctx.walk
        (rows, steps, channels), taps = x.shape, weight.shape[1]
        dx = torch.empty_like(x) if walk.order is None else torch.zeros_like(x)
        dstate, grid = torch.empty_like(state), _grid(x)
        parts = x.new_empty(rows * grid[2], taps + 1, channels, dtype=torch.float32)
        kernels.backward[grid](
            x, weight, state, dy.contiguous(), dfinal.contiguous(), *walk.pointers,
            dx, dstate, parts, steps, channels, **_constants(weight, walk),
        )  # fmt: skip
        sums = parts.sum(0)
        dweight = sums[:taps].flip(0).T.to(weight.dtype)
        return dx, dweight, ctx.bias and sums[taps].to(ctx.bias), dstate, None


def _grid(x: Tensor) -> tuple[int, int, int]:
    rows, steps, channels = x.shape
    return triton.cdiv(channels, CHANNELS), rows, triton.cdiv(steps, TIME)


def _constants(weight: Tensor, walk: Walk) -> dict[str, Any]:
    order = walk.order is not None
    return {"W": weight.shape[1], "TIME": TIME, "CHANNELS": CHANNELS, "ORDER": order}
