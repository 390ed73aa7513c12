"""almost_linear fused for CUDA: one launch forward, one backward, and a matrix product.

Once differentiable.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.almost_linear import triton_kernels as kernels
from decision_s4.kernels.almost_linear.misfit import misfit
from decision_s4.kernels.choice import check
from decision_s4.kernels.packing import Packing, Walk
from decision_s4.kernels.triton_walk import BACKWARD, FORWARD, TILE, grid, launch, padded


def scan(
    u: Tensor, decay: Tensor, weight: Tensor, linear: int, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `almost_linear`."""
    check("almost_linear", u.device, misfit(u, weight))
    inputs = u, decay, weight, state
    keep = torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
    with torch.cuda.device_of(u):
        return FusedScan.apply(linear, keep, packing.walk, *inputs)


class FusedScan(torch.autograd.Function):
    """L, whether to keep, walk, u (B, T, M), A (M,), W (M, M), state (B, M) -> z, final state."""

    @staticmethod
    def forward(
        ctx: Any, linear: int, keep: bool, walk: Walk, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, decay, weight, state = (each.contiguous() for each in inputs)
        z, final = torch.zeros_like(u), torch.empty_like(state)
        kept = u.new_zeros(u.shape if keep else 0, dtype=torch.float32)
        kernels.forward[grid(u)](
            u, decay, weight, state, *walk.pointers, z, final, kept, u.shape[1], linear,
            KEEP=keep, **_constants(weight, walk, FORWARD),
        )  # fmt: skip
        ctx.save_for_backward(decay, weight, kept)
        ctx.linear, ctx.walk, ctx.types = linear, walk, [each.dtype for each in inputs]
        return z, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        (decay, weight, kept), walk = ctx.saved_tensors, ctx.walk
        dfinal = dfinal.contiguous()
        du, dstate = torch.zeros_like(kept), torch.empty_like(dfinal)
        kernels.backward[grid(dz)](
            decay, weight, kept, dz.contiguous(), dfinal, *walk.pointers, du, dstate,
            dz.shape[1], ctx.linear, **_constants(weight, walk, BACKWARD),
        )  # fmt: skip
        through, before = du.flatten(0, 1), kept.flatten(0, 1)
        plain, bent = before.tensor_split([ctx.linear], dim=1)
        dweight = through.T @ torch.cat([plain, bent.relu()], dim=1)
        gradients = du, (through * before).sum(0), dweight, dstate
        pairs = zip(gradients, ctx.types, strict=True)
        return None, None, None, *(x.to(kind) for x, kind in pairs)


def _constants(weight: Tensor, walk: Walk, each: int) -> dict[str, Any]:
    size = padded(len(weight))
    flags = {"M": len(weight), "M_": size, "TILE": TILE, "ORDER": walk.order is not None}
    return flags | launch(size * size, each)
