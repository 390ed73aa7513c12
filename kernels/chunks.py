"""Rows to chunks and back, and the state passed from chunk to chunk: what chunked scans share.

Shapes: B rows, T steps, M chunks of L steps. No chunk holds two episodes (see packing.py), so
resets need no mask; the padding of an episode's last chunk reads as zero.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.packing import ChunkLayout


class _Rearrange(torch.autograd.Function):
    """y[i] = x[there[i]], zero where there[i] = len(x); `back` is the inverse, so that the
    gradient is a gather too: far faster than adding into rows that are each met once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        return padded.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Rearrange.apply(gradient, back, there), None, None


def to_chunks(x: Tensor, layout: ChunkLayout) -> Tensor:
    """x (B, T, …) -> (M, L, …) in time order, zero where a chunk is padded."""
    there = layout.source.flip(1)
    chunks = _Rearrange.apply(x.flatten(0, 1), there.flatten(), layout.target)
    return chunks.view(*there.shape, *x.shape[2:])


def from_chunks(chunks: Tensor, layout: ChunkLayout, rows: int) -> Tensor:
    """The inverse of `to_chunks`: (M, L, …) -> (B, T, …), zero at steps that are not valid."""
    there = layout.source.flip(1).flatten()
    y = _Rearrange.apply(chunks.flatten(0, 1), layout.target, there)
    return y.view(rows, -1, *chunks.shape[2:])


def pass_on(
    gain: Tensor,
    decay: Tensor,
    state: Tensor,
    layout: ChunkLayout,
    product: Callable[[Tensor, Tensor], Tensor] = torch.mul,
) -> tuple[Tensor, Tensor]:
    """S ← decay · S + gain, from each chunk of an episode to its next.

    Args:
        gain: (M, …) what each chunk adds to the state.
        decay: (M, …) what it leaves of the state before.
        state: (B, …) carried in.
        product: of decay and state; `torch.matmul` where the decay is a matrix.

    Returns:
        (state before each chunk (M, …), final state (B, …)).
    """
    first = gain.new_zeros(layout.counts[0], *gain.shape[1:])
    s = first.index_copy(0, layout.carry_chunks, state[layout.carry_rows])
    before = []
    for kept, gained in zip(decay.split(layout.counts), gain.split(layout.counts), strict=True):
        s = s if len(s) == len(gained) else s[: len(gained)]  # shorter episodes have ended
        before.append(s)
        s = product(kept, s) + gained
    before, last = torch.cat(before), layout.final_chunks
    final = product(decay[last], before[last]) + gain[last]
    return before, state.index_copy(0, layout.final_rows, final)


def chunk_for(steps: int, chunk: int) -> int:
    """No longer than so many steps in a row need, a power of two."""
    return min(chunk, 1 << (steps - 1).bit_length())
