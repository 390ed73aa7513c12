"""lti_scan fused for CUDA: one launch forward, one backward, and matrix products around them.

Shapes: B rows, T steps, H channels, N real states, L steps a chunk; see prepared.py.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.choice import check
from decision_s4.kernels.lti_scan import triton_kernels as kernels
from decision_s4.kernels.lti_scan.misfit import misfit
from decision_s4.kernels.lti_scan.prepared import CHUNK, Prepared, chunk_maps, reading
from decision_s4.kernels.lti_scan.system import System
from decision_s4.kernels.packing import Packing, Walk

WARPS = 8  # of a program; forward half as many where there are MANY programs, more than run at once
MANY = 512
GROUPS = 16  # of rows, whose gradients of the matrices are summed at once


def scan(
    u: Tensor, system: System, state: Tensor, packing: Packing, prepared: Prepared | None = None
) -> tuple[Tensor, Tensor]:
    """See `lti_scan`."""
    check("lti_scan", u.device, misfit(system, u.dtype))
    c, carried = torch.view_as_real(system.c).flatten(1), state.flatten(2)
    with torch.cuda.device_of(u):
        if prepared is None:
            y, final = FusedScan.apply(u, *_matrices(system, c), carried, packing.walk)
        else:
            y, final = PreparedScan.apply(u, c, carried, prepared, packing.walk)
    return y, final.view_as(state)


class Matrices(NamedTuple):
    """What a chunk does; `kernel` (H, L), `read` (H, L / R, N, R), the others as in Prepared."""

    kernel: Tensor
    read: Tensor
    ahead: Tensor
    powers: Tensor


def _matrices(system: System, c: Tensor) -> Matrices:
    """Those of a system of which all is trained."""
    ahead, powers = chunk_maps(system, CHUNK)
    row = c * reading(c.shape[1], c)
    read = torch.bmm(row[:, None], powers[0]).transpose(1, 2)  # (H, N, 1)
    for power in powers[:-1]:
        read = torch.cat([read, torch.bmm(power.transpose(1, 2), read)], dim=2)
    kernel = torch.bmm(row[:, None], ahead).squeeze(1)
    return Matrices(kernel, read[:, None], ahead, powers)


class FusedScan(torch.autograd.Function):
    """u (B, T, H), a chunk's matrices, state (B, H, N), walk -> y, final state."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        kernel: Tensor,
        read: Tensor,
        ahead: Tensor,
        powers: Tensor,
        state: Tensor,
        walk: Walk,
    ) -> tuple[Tensor, Tensor]:
        u, state, *matrices = (x.contiguous() for x in (u, state, kernel, read, ahead, powers))
        y, final, kept = _forward(u, Matrices(*matrices), state, walk)
        ctx.save_for_backward(u, *matrices, *kept)
        ctx.walk = walk
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        u, *saved = ctx.saved_tensors
        matrices, kept = Matrices(*saved[:4]), saved[4:]
        groups = min(GROUPS, len(u))
        sums = Matrices(*(x.new_empty(groups, *x.shape) for x in matrices))
        sums.powers.zero_()
        du, dstate = _backward(u, dy, dfinal, matrices, kept, ctx.walk, sums, full=True)
        return du, *(x.sum(0) for x in sums), dstate, None


class PreparedScan(torch.autograd.Function):
    """u (B, T, H), c (H, N), state (B, H, N), constants, walk -> y, final state."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, c: Tensor, state: Tensor, prepared: Prepared, walk: Walk
    ) -> tuple[Tensor, Tensor]:
        u, c, state = (x.contiguous() for x in (u, c, state))
        _, size, inner, outer = prepared.shape
        rows = torch.bmm(prepared.rows, c[..., None]).squeeze(2)  # (H, R N + L)
        first = rows[:, : inner * size].view(-1, inner, size).transpose(1, 2)
        read = torch.bmm(prepared.later, first).view(-1, outer, size, inner)
        matrices = Matrices(rows[:, inner * size :], read, prepared.ahead, prepared.powers)
        y, final, kept = _forward(u, matrices, state, walk)
        ctx.save_for_backward(u, rows, read, *kept)
        ctx.prepared, ctx.walk = prepared, walk
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        (u, rows, read, *kept), prepared = ctx.saved_tensors, ctx.prepared
        _, size, inner, outer = prepared.shape
        kernel = rows[:, inner * size :]
        matrices = Matrices(kernel, read, prepared.ahead, prepared.powers)
        groups = min(GROUPS, len(u))
        drows = rows.new_empty(groups, *rows.shape)
        dread = read.new_empty(groups, *read.shape)
        sums = Matrices(drows[..., inner * size :], dread, dread, dread)
        du, dstate = _backward(u, dy, dfinal, matrices, kept, ctx.walk, sums, full=False)
        drows, dread = (x[0] if groups == 1 else x.sum(0) for x in (drows, dread))
        dread = dread.view(len(read), outer * size, inner)
        into = drows[:, : inner * size].view(-1, inner, size)
        into.copy_(torch.bmm(dread.transpose(1, 2), prepared.later))
        dc = torch.bmm(drows[:, None], prepared.rows).squeeze(1)
        return du, dc, dstate, None, None


def _forward(
    u: Tensor, matrices: Matrices, state: Tensor, walk: Walk
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """y, final state, and what the gradient needs of the states on the way."""
    (batch, steps, h), size = u.shape, state.shape[2]
    length = matrices.ahead.shape[2]
    chunks, digits = triton.cdiv(steps, length), length.bit_length() - 1
    y = torch.empty_like(u) if walk.order is None else torch.zeros_like(u)
    final, warps = torch.empty_like(state), WARPS // 2 if h * batch > MANY else WARPS
    kept = u.new_empty(batch, h, chunks, size), u.new_empty(batch, h, digits, size)
    kernels.forward[h, batch](
        u, *matrices, state, *walk.pointers, y, final, *kept,
        steps, h, chunks, matrices.kernel.stride(0), **_constants(matrices, walk, warps),
    )  # fmt: skip
    return y, final, kept


def _backward(
    u: Tensor,
    dy: Tensor,
    dfinal: Tensor,
    matrices: Matrices,
    kept: tuple[Tensor, Tensor],
    walk: Walk,
    sums: Matrices,
    full: bool,
) -> tuple[Tensor, Tensor]:
    """du and dstate; `sums` (G, …) are filled, those of `ahead` and `powers` if `full`."""
    batch, steps, h = u.shape
    groups, length, chunks = len(sums.read), matrices.ahead.shape[2], kept[0].shape[2]
    dfinal = dfinal.contiguous()
    du = torch.empty_like(u) if walk.order is None else torch.zeros_like(u)
    dstate, scratch = torch.empty_like(dfinal), u.new_empty(groups, h, length, length)
    kernels.backward[h, groups](
        u, dy.contiguous(), dfinal, *matrices, *walk.pointers, *kept, du, dstate, *sums, scratch,
        batch, steps, h, chunks, matrices.kernel.stride(0), sums.kernel.stride(1),
        FULL=full, **_constants(matrices, walk, WARPS),
    )  # fmt: skip
    return du, dstate


def _constants(matrices: Matrices, walk: Walk, warps: int) -> dict[str, Any]:
    _, size, length = matrices.ahead.shape
    return {
        "N": size, "N_": max(2, triton.next_power_of_2(size)), "L": length,
        "K": length.bit_length() - 1, "R": matrices.read.shape[3],
        "ORDER": walk.order is not None, "num_warps": warps,
    }  # fmt: skip
