"""Where the episodes of packed rows lie, as index tensors that every scan shares.

Shapes: B rows, T steps, L chunk length, M chunks of all episodes together.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


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


class Walk(NamedTuple):
    """A way along rows, for programs that walk them; int32."""

    order: Tensor | None
    """(B, T) the valid steps of a row in time order; None: the first `counts`."""
    segment: Tensor
    """(B, T) by step: how many episodes have begun in the row up to there."""
    counts: Tensor
    """(B,) valid steps."""

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """The fields; in place of no order, one that is not read."""
        return self.segment if self.order is None else self.order, self.segment, self.counts


@dataclass(frozen=True)
class Sequences:
    """E episodes end to end, as kernels for sequences of any length take them."""

    steps: Tensor
    """(S,) all valid steps, flat, in order."""
    bounds: Tensor
    """(E + 1,) where in `steps` each episode begins; last, S."""
    carry_rows: Tensor
    """(C,) rows whose first episode goes on from the state carried in."""
    carried: Tensor
    """(C,) that episode."""
    final_rows: Tensor
    """(F,) rows with at least one valid step."""
    final: Tensor
    """(F,) the last episode of each."""


class Packing:
    """The episodes in rows of `start` (B, T) bool, computed once a batch and shared by all layers.

    `start[b, t]` marks the first step of an episode. Steps with `valid` False belong to none:
    they leave the state untouched, and a `start` there means nothing.
    """

    def __init__(self, start: Tensor, valid: Tensor | None = None):
        self.start, self.valid = start, valid
        self.rows, self.steps = start.shape
        self._layouts: dict[int, ChunkLayout] = {}

    @classmethod
    def unbroken(cls, rows: int, steps: int, device: torch.device | None = None) -> "Packing":
        """Rows without any start: each goes on from the state carried in."""
        return cls(torch.zeros(rows, steps, dtype=torch.bool, device=device))

    @classmethod
    def prepared(cls, start: Tensor, valid: Tensor, *known: "ChunkLayout | Walk") -> "Packing":
        """With layouts and a walk of `start` and `valid` that were computed elsewhere."""
        packing = cls(start, valid)
        for each in known:
            if isinstance(each, Walk):
                packing.walk = each
            else:
                packing._layouts[each.source.shape[1]] = each
        return packing

    @cached_property
    def _episodes(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Valid steps (flat), the episode of each, its position there, episode begins, lengths."""
        start = self.start.flatten()
        if self.valid is None:
            index = torch.arange(start.numel(), device=start.device)
        else:
            index = self.valid.flatten().nonzero().squeeze(1)
        row = index // self.steps
        begins = start[index]
        if len(begins):
            begins[0] = True
            begins[1:] |= row[1:] != row[:-1]
        episode = begins.cumsum(0) - 1
        first = begins.nonzero().squeeze(1)
        ends = torch.cat([first[1:], first.new_tensor([len(index)])])
        position = torch.arange(len(index), device=start.device) - first[episode]
        return index, episode, position, first, ends[: len(first)] - first

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each episode: its row, whether it begins from the state carried in, ends its row."""
        index, _, _, first, _ = self._episodes
        row = index[first] // self.steps
        opens = torch.ones_like(row, dtype=torch.bool)
        opens[1:] = row[1:] != row[:-1]
        closes = torch.ones_like(opens)
        closes[:-1] = opens[1:]
        return row, opens & ~self.start.flatten()[index[first]], closes

    @cached_property
    def sequences(self) -> Sequences:
        """The episodes as sequences of their own lengths."""
        index, _, _, first, _ = self._episodes
        row, carries, closes = self._ends
        return Sequences(
            steps=index,
            bounds=torch.cat([first, first.new_tensor([len(index)])]),
            carry_rows=row[carries],
            carried=carries.nonzero().squeeze(1),
            final_rows=row[closes],
            final=closes.nonzero().squeeze(1),
        )

    @cached_property
    def longest(self) -> int:
        """Steps of the longest episode, at least 1."""
        lengths = self._episodes[-1]
        return int(lengths.max()) if len(lengths) else 1

    @cached_property
    def twice(self) -> "Packing":
        """The same episodes with each step in two halves, one after the other."""
        start = torch.stack([self.start, torch.zeros_like(self.start)], 2).flatten(1)
        valid = None if self.valid is None else self.valid.repeat_interleave(2, 1)
        return Packing(start, valid)

    @cached_property
    def begins(self) -> Tensor:
        """(B, T) bool: the steps at which an episode begins."""
        return self.start if self.valid is None else self.start & self.valid

    @cached_property
    def marks(self) -> Tensor:
        """(B, T) uint8: 0 for a step of no episode, 2 for the first of one, 1 for the others."""
        marks = self.start.to(torch.uint8) + 1
        return marks if self.valid is None else marks * self.valid

    @cached_property
    def ordered(self) -> bool:
        """Whether valid steps come first in every row; False on a GPU, which is not asked."""
        valid = self.valid
        if valid is None:
            return True
        return valid.device.type == "cpu" and not bool((valid[:, 1:] > valid[:, :-1]).any())

    @cached_property
    def walk(self) -> Walk:
        """How to walk along each row."""
        if self.valid is None:
            segment = self.start.cumsum(1, dtype=torch.int32)
            counts = segment.new_full((self.rows,), self.steps)
            return Walk(None, segment, counts)
        valid, steps = self.valid, self.steps
        segment = (self.start & valid).cumsum(1, dtype=torch.int32)
        counts = valid.sum(1, dtype=torch.int32)
        if self.ordered:
            return Walk(None, segment, counts)
        place = torch.where(valid, valid.cumsum(1) - 1, steps)
        number = torch.arange(steps, dtype=torch.int32, device=valid.device).expand_as(place)
        order = segment.new_zeros(self.rows, steps + 1).scatter_(1, place, number)
        return Walk(order[:, :steps].contiguous(), segment, counts)

    def chunks(self, length: int) -> ChunkLayout:
        """The episodes cut into chunks of `length` steps."""
        if length not in self._layouts:
            self._layouts[length] = self._cut(length)
        return self._layouts[length]

    def _cut(self, length: int) -> ChunkLayout:
        index, episode, position, _, lengths = self._episodes
        total = self.start.numel()
        n_chunks = (lengths + length - 1) // length
        place = torch.empty_like(n_chunks)
        place[n_chunks.argsort(descending=True, stable=True)] = torch.arange(
            len(n_chunks), device=n_chunks.device
        )
        counts = _suffix_counts(n_chunks)
        offsets = counts.cumsum(0) - counts
        chunk = offsets[position // length] + place[episode]
        within = position % length
        m = int(n_chunks.sum())

        source = index.new_full((m * length,), total)
        source[chunk * length + (length - 1 - within)] = index
        target = index.new_full((total,), m * length)
        target[index] = chunk * length + within

        row, carries, closes = self._ends
        final_chunks = (offsets[n_chunks - 1] + place)[closes]
        final_lengths = (lengths - (n_chunks - 1) * length)[closes]
        source = source.view(m, length)
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
