"""diagonal_scan fused for CUDA: one launch forward, one backward and a sum over rows."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.choice import check
from decision_s4.kernels.diagonal_scan import triton_kernels as kernels
from decision_s4.kernels.diagonal_scan.misfit import misfit
from decision_s4.kernels.packing import Packing

TIME, POLES = 128, 16  # of a tile: of four the fastest on an H100 at 32 and 64 poles


def scan(u: Tensor, a: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """See `diagonal_scan`."""
    check("diagonal_scan", u.device, misfit(u))
    with torch.cuda.device_of(u):
        x, final = FusedScan.apply(u, a, state, packing.marks)
    if packing.valid is not None:
        x = x.masked_fill(~packing.valid[..., None], 0)
    return x, final


class FusedScan(torch.autograd.Function):
    """u (B, T, P), a (P,), state (B, P), marks -> the state after every step, and the last."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, a: Tensor, state: Tensor, marks: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, a, state = (x.resolve_conj().contiguous() for x in (u, a, state))
        marks = marks.contiguous()
        x, final = _launch(u, a, marks, state)
        ctx.save_for_backward(a, marks, state, x)
        return x, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        a, marks, state, x = ctx.saved_tensors
        dx, dfinal = (d.resolve_conj().contiguous() for d in (dx, dfinal))
        da = torch.empty_like(state)
        du, first = _launch(dx, a, marks, dfinal, x, da)
        opening = marks[:, :1]
        carried = torch.where(opening == 1, a.conj() * first, first).masked_fill(opening == 2, 0)
        da = da.sum(0) + (state.conj() * first).masked_fill(opening != 1, 0).sum(0)
        return du.masked_fill(marks[..., None] == 0, 0), da, carried, None


def _launch(
    u: Tensor,
    a: Tensor,
    marks: Tensor,
    begin: Tensor,
    before: Tensor | None = None,
    da: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every state and the last; in reverse if the states `before` are given."""
    x, end = torch.empty_like(u), torch.empty_like(begin)
    rows, steps, poles = u.shape
    given = u, a, begin, x, end, x if before is None else before, end if da is None else da
    u, a, *others = (torch.view_as_real(each) for each in given)
    kernels.scan[rows, triton.cdiv(poles, POLES)](
        u, a, marks, *others, steps,
        P=poles, POLES=POLES, TIME=TIME, REVERSE=before is not None, num_warps=4,
    )  # fmt: skip
    return x, end
