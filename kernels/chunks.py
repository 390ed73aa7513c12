"""Rows to chunks and back, and the state passed from chunk to chunk: what chunked scans share.

Shapes: B rows, T steps, M chunks of L steps. No chunk holds two episodes (see chunk_layout.py), so
resets need no mask; the padding of an episode's last chunk reads as zero.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.chunk_layout import ChunkLayout


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
    kept = decay.split(layout.counts)

    def advance(x: Tensor, gained: Tensor, rank: int) -> Tensor:
        return product(kept[rank][: len(x)], x) + gained

    before, last = states_before(gain, state, layout, advance), layout.final_chunks
    final = product(decay[last], before[last]) + gain[last]
    return before, state.index_copy(0, layout.final_rows, final)


def states_before(
    gain: Tensor,
    state: Tensor,
    layout: ChunkLayout,
    advance: Callable[[Tensor, Tensor, int], Tensor],
    dim: int = 0,
) -> Tensor:
    """The state before each chunk, M of them along `dim`.

    Args:
        gain: (…, M, …) what each chunk adds to the state.
        state: (…, B, …) carried in.
        layout: of the chunks.
        advance: of the states before the first chunks of a rank, their gains, and the rank: the
            states after them.
        dim: of chunks in `gain`, of rows in `state`.
    """
    gains = gain.split(layout.counts, dim)  # not slices: each would cost a whole gradient
    x = torch.zeros_like(gains[0]).index_copy(
        dim, layout.carry_chunks, state.index_select(dim, layout.carry_rows)
    )
    before = [x]
    for rank, following in enumerate(layout.counts[1:]):  # shorter episodes have ended
        x, gained = (each.narrow(dim, 0, following) for each in (x, gains[rank]))
        x = advance(x, gained, rank)
        before.append(x)
    return torch.cat(before, dim)


def chunk_for(steps: int, chunk: int) -> int:
    """No longer than so many steps in a row need, a power of two."""
    return min(chunk, 1 << (steps - 1).bit_length())
