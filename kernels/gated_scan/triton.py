"""gated_scan fused for CUDA: one launch forward, one backward, matrix products around them.

Once differentiable.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from decision_s4.kernels.choice import check
from decision_s4.kernels.gated_scan import triton_kernels as kernels
from decision_s4.kernels.gated_scan.misfit import misfit
from decision_s4.kernels.packing import Packing, Walk
from decision_s4.kernels.triton_walk import BACKWARD, FORWARD, TILE, grid, launch, padded


class Cell(NamedTuple):
    """The kernels of a network, and what they keep."""

    forward: Any
    backward: Any
    gates: int
    planes: int
    """Vectors a step kept for the gradient; the first is h before."""
    apart: bool
    """Whether the products U h + b' have a gradient that is not that of the gates."""


CELLS = {
    "GRU": Cell(kernels.gru, kernels.gru_backward, 3, 5, apart=True),
    "LSTM": Cell(kernels.lstm, kernels.lstm_backward, 4, 6, apart=False),
}


def scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`."""
    check("gated_scan", x.device, misfit(network, x.dtype))
    if packing.valid is not None:  # NaN in a hole would reach the gradient of W
        x = x.masked_fill(~packing.valid[..., None], 0)
    of_inputs, weight, bias_of_inputs, bias = network.all_weights[0]
    gates = F.linear(x, of_inputs, bias_of_inputs)
    inputs = gates, weight, bias, state
    keep = torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
    with torch.cuda.device_of(x):
        return FusedScan.apply(CELLS[network.mode], keep, packing.walk, *inputs)


class FusedScan(torch.autograd.Function):
    """cell, whether to keep, walk, gates (B, T, G H), U (G H, H), b' (G H,), state (B, parts, H) ->
    h (B, T, H), final state."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, keep: bool, walk: Walk, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates, weight, bias, state = (each.contiguous() for each in inputs)
        rows, steps, _ = gates.shape
        y, final = gates.new_zeros(rows, steps, weight.shape[1]), torch.empty_like(state)
        kept = gates.new_empty(cell.planes if keep else 0, *y.shape, dtype=torch.float32)
        if keep:
            kept[0].zero_()  # what is summed over all steps
        cell.forward[grid(y)](
            gates, weight, bias, state, *walk.pointers, y, final, kept, y.numel(), steps,
            KEEP=keep, **_constants(cell, weight, walk, FORWARD),
        )  # fmt: skip
        ctx.save_for_backward(weight, kept)
        ctx.cell, ctx.walk, ctx.types = cell, walk, [each.dtype for each in inputs]
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        (weight, kept), cell, walk = ctx.saved_tensors, ctx.cell, ctx.walk
        rows, steps, _ = dy.shape
        made = [kept.new_zeros(rows, steps, len(weight)) for _ in range(1 + cell.apart)]
        dfinal = dfinal.contiguous()
        dstate = torch.empty_like(dfinal)
        cell.backward[grid(dy)](
            weight, kept, dy.contiguous(), dfinal, *walk.pointers, *made, dstate, dy.numel(), steps,
            **_constants(cell, weight, walk, BACKWARD),
        )  # fmt: skip
        product, before = made[-1].flatten(0, 1), kept[0].flatten(0, 1)
        gradients = made[0], product.T @ before, product.sum(0), dstate
        pairs = zip(gradients, ctx.types, strict=True)
        return None, None, None, *(x.to(kind) for x, kind in pairs)


def _constants(cell: Cell, weight: Tensor, walk: Walk, each: int) -> dict[str, Any]:
    width = weight.shape[1]
    size = padded(width)
    flags = {"H": width, "H_": size, "TILE": TILE, "ORDER": walk.order is not None}
    return flags | launch(cell.gates * size * size, each)
