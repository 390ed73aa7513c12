"""Episodes of packed rows cut into chunks, as index tensors.

Shapes: B rows, T steps, L chunk length, M chunks of all episodes together, E episodes.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Episodes(NamedTuple):
    """The episodes of packed rows, in the order of rows."""

    steps: Tensor
    """(S,) all valid steps, flat, in order."""
    episode: Tensor
    """(S,) the episode of each."""
    position: Tensor
    """(S,) its place there."""
    first: Tensor
    """(E,) where in `steps` each episode begins."""
    lengths: Tensor
    """(E,)"""


class Ends(NamedTuple):
    """How each episode lies in its row."""

    row: Tensor
    """(E,)"""
    carries: Tensor
    """(E,) bool: it begins from the state carried in."""
    closes: Tensor
    """(E,) bool: it ends its row."""


@dataclass(frozen=True)
class ChunkLayout:
    """Episodes cut into chunks of L, ordered as a packed sequence: all first chunks, then all
    second ones, …, longest episode first. Chunks of rank k + 1 then continue a prefix of rank k's.

    No chunk holds two episodes, so resets need no mask; only an episode's last chunk is padded.
    All that is read of it on CUDA is a field: what a recorded graph reads must live as long as it.
    """

    source: Tensor
    """(M, L) step read by each place of a chunk, latest first; B·T means none (read as zero)."""
    target: Tensor
    """(B·T,) place in the chunks, in time order (M·L), of each step; M·L means none."""
    counts: tuple[int, ...]
    """Number of chunks of each rank."""
    previous: Tensor
    """(M − counts[0],) the chunk before each that is not an episode's first."""
    carry_rows: Tensor
    """(C,) rows whose first episode goes on from the state carried in."""
    carry_chunks: Tensor
    """(C,) the rank-0 chunk in which each of those begins."""
    final_rows: Tensor
    """(F,) rows with at least one valid step."""
    final_chunks: Tensor
    """(F,) the chunk in which each such row ends."""
    final_episodes: Tensor
    """(F,) the episode in which each such row ends: its place, longest first."""
    final_lengths: Tensor
    """(F,) how many steps, 1 … L, that chunk holds."""
    tail: Tensor
    """(F, L) the steps of that chunk, latest first."""


def cut(episodes: Episodes, ends: Ends, total: int, length: int) -> ChunkLayout:
    """The episodes, of rows of `total` steps together, in chunks of `length`."""
    steps, episode, position, _, lengths = episodes
    row, carries, closes = ends
    n_chunks = (lengths + length - 1) // length
    place, counts = _longest_first(n_chunks), _suffix_counts(n_chunks)
    offsets = counts.cumsum(0) - counts
    chunk, within = offsets[position // length] + place[episode], position % length
    m = int(n_chunks.sum())
    source = steps.new_full((m * length,), total)
    source[chunk * length + (length - 1 - within)] = steps
    target = steps.new_full((total,), m * length)
    target[steps] = chunk * length + within
    source = source.view(m, length)
    final_chunks = (offsets[n_chunks - 1] + place)[closes]
    final_lengths = (lengths - (n_chunks - 1) * length)[closes]
    return ChunkLayout(
        source=source,
        target=target,
        counts=tuple(counts.tolist()),
        previous=_previous(counts),
        carry_rows=row[carries],
        carry_chunks=place[carries],
        final_rows=row[closes],
        final_chunks=final_chunks,
        final_episodes=place[closes],
        final_lengths=final_lengths,
        tail=_latest_first(source[final_chunks], final_lengths, total),
    )


def widened(layout: ChunkLayout, counts: tuple[int, ...]) -> ChunkLayout:
    """The same layout with empty chunks: `counts` of each rank, never fewer than it has."""
    length, wide = layout.source.shape[1], sum(counts)
    ranks = enumerate(layout.counts)
    ranges = (torch.arange(count) + sum(counts[:rank]) for rank, count in ranks)
    place = torch.cat([torch.arange(0), *ranges])  # where no step is valid there are none
    source = layout.source.new_full((wide, length), len(layout.target))
    source[place] = layout.source
    moved = torch.cat([place, place.new_tensor([wide])])  # a step in none stays in none
    return replace(
        layout,
        source=source,
        target=moved[layout.target // length] * length + layout.target % length,
        counts=counts,
        previous=_previous(torch.tensor(counts, dtype=torch.long)),
        final_chunks=place[layout.final_chunks],
    )


def _longest_first(n_chunks: Tensor) -> Tensor:
    """(E,) each episode's place among all, those of most chunks first."""
    place = torch.empty_like(n_chunks)
    order = n_chunks.argsort(descending=True, stable=True)
    place[order] = torch.arange(len(n_chunks), device=n_chunks.device)
    return place


def _suffix_counts(n_chunks: Tensor) -> Tensor:
    """counts[k] = number of episodes with more than k chunks."""
    if len(n_chunks) == 0:
        return n_chunks
    histogram = torch.bincount(n_chunks)[1:]
    return histogram.flip(0).cumsum(0).flip(0)


def _previous(counts: Tensor) -> Tensor:
    """See `ChunkLayout`: chunks of rank k continue the first ones of rank k − 1."""
    back = counts[:-1].repeat_interleave(counts[1:])
    return torch.arange(len(back), device=counts.device) + counts[:1].sum() - back


def _latest_first(source: Tensor, lengths: Tensor, none: int) -> Tensor:
    """Shift each chunk (F, L), latest first, so that its last valid step stands first."""
    length = source.shape[1]
    shifted = torch.arange(length, device=source.device) + (length - lengths)[:, None]
    gathered = source.gather(1, shifted.clamp(max=length - 1))
    return gathered.masked_fill(shifted >= length, none)
