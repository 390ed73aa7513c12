"""selective_scan in torch operations alone, chunk by chunk; the backward pass recomputes states.

Shapes: B rows, T steps, D channels, N states, L steps of a chunk. Time comes first inside, so that
a step's states are contiguous. Only the state before each chunk is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.selective_scan.arguments import Arguments

CHUNK_ELEMENTS = 1 << 17  # a chunk's states, 512 KiB in float32: a few of them stay in the cache
SHORTEST = 8  # states kept are 1 / L of all
Resets = dict[int, Tensor]  # steps at which some row starts an episode, and which rows (B, 1, 1) do


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    y, state = ChunkedScan.apply(*arguments.core(), arguments.state, arguments.start)
    return arguments.finish(y), state


class ChunkedScan(torch.autograd.Function):
    """(u, Δ, A, B, C, state, start) -> (y, final state), the recurrence alone."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        u, delta, B, C = (x.transpose(0, 1).contiguous() for x in (u, delta, B, C))
        resets = _resets(start)
        y, before, h = torch.empty_like(u), [], state
        for chunk in _chunks(u, A.shape[1]):
            before.append(h)
            _, states = _states(chunk, u, delta, A, B, h, resets)
            torch.matmul(states, C[chunk, ..., None], out=y[chunk, ..., None])
            h = states[-1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *before)
        ctx.resets = resets
        return y.transpose(0, 1), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, *before = ctx.saved_tensors
        with torch.autocast(u.device.type, enabled=False):
            return *_gradients(ctx.resets, u, delta, A, B, C, before, dy, dh), None


def _gradients(
    resets: Resets,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    before: list[Tensor],
    dy: Tensor,
    dh: Tensor,
) -> tuple[Tensor, ...]:
    dy = dy.transpose(0, 1).contiguous()
    du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, B, C))
    dA = torch.zeros_like(A)
    for chunk, h in reversed(list(zip(_chunks(u, A.shape[1]), before, strict=True))):
        decay, states = _states(chunk, u, delta, A, B, h, resets)
        adjoint, dh = _adjoint(chunk, dy, C, decay, dh, resets)
        torch.matmul(dy[chunk, :, None], states, out=dC[chunk, :, None])
        drive = (delta[chunk] * u[chunk])[:, :, None]
        torch.matmul(drive, adjoint, out=dB[chunk, :, None])
        driven = torch.matmul(adjoint, B[chunk, ..., None]).squeeze(-1)
        # `decay` becomes dL/d(Δ A)
        flow = decay.mul_(adjoint).mul_(_previous(chunk, states, h, resets))
        torch.mul(delta[chunk], driven, out=du[chunk])
        torch.addcmul((flow * A).sum(-1), u[chunk], driven, out=ddelta[chunk])
        dA += (flow.mul_(delta[chunk, ..., None])).sum((0, 1))
    return (
        *(x.transpose(0, 1) for x in (du, ddelta)),
        dA,
        dB.transpose(0, 1),
        dC.transpose(0, 1),
        dh,
    )


def _chunks(u: Tensor, size: int) -> list[slice]:
    steps, rows, channels = u.shape
    length = max(SHORTEST, CHUNK_ELEMENTS // (rows * channels * size))
    return [slice(t, min(t + length, steps)) for t in range(0, steps, length)]


def _resets(start: Tensor | None) -> Resets:
    if start is None:
        return {}
    return {t: start[:, t, None, None] for t in start.any(0).nonzero().flatten().tolist()}


def _cut(state: Tensor, t: int, resets: Resets) -> Tensor:
    return state.masked_fill(resets[t], 0) if t in resets else state  # selects: it may be NaN


def _states(
    chunk: slice, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor, resets: Resets
) -> tuple[Tensor, Tensor]:
    """exp(Δ A) and h after each step of a chunk, (L, B, D, N), from the state h before it."""
    decay = (delta[chunk, ..., None] * A).exp_()
    states = (delta[chunk] * u[chunk])[..., None] * B[chunk, :, None]
    for t, a, x in zip(range(chunk.start, chunk.stop), decay, states, strict=True):
        h = x.addcmul_(a, _cut(h, t, resets))
    return decay, states


def _previous(chunk: slice, states: Tensor, h: Tensor, resets: Resets) -> Tensor:
    """The state that each step saw (L, B, D, N)."""
    previous = torch.cat([h[None], states[:-1]])
    for t in range(chunk.start, chunk.stop):
        if t in resets:
            previous[t - chunk.start].masked_fill_(resets[t], 0)
    return previous


def _adjoint(
    chunk: slice, dy: Tensor, C: Tensor, decay: Tensor, dh: Tensor, resets: Resets
) -> tuple[Tensor, Tensor]:
    """dL/dh after each step of a chunk (L, B, D, N), from that after the chunk; and before it."""
    adjoint = dy[chunk, ..., None] * C[chunk, :, None]
    for t in range(chunk.stop - 1, chunk.start - 1, -1):
        i = t - chunk.start
        dh = _cut(adjoint[i].add_(dh) * decay[i], t, resets)
    return adjoint, dh
