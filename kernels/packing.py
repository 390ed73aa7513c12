"""Where the episodes of packed rows lie, as index tensors that every scan shares.

Shapes: B rows, T steps, E episodes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.chunk_layout import ChunkLayout, Ends, Episodes, cut


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
    def _episodes(self) -> Episodes:
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
        return Episodes(index, episode, position, first, ends[: len(first)] - first)

    @cached_property
    def _ends(self) -> Ends:
        index, first = self._episodes.steps, self._episodes.first
        row = index[first] // self.steps
        opens = torch.ones_like(row, dtype=torch.bool)
        opens[1:] = row[1:] != row[:-1]
        closes = torch.ones_like(opens)
        closes[:-1] = opens[1:]
        return Ends(row, opens & ~self.start.flatten()[index[first]], closes)

    @cached_property
    def sequences(self) -> Sequences:
        """The episodes as sequences of their own lengths."""
        index, first = self._episodes.steps, self._episodes.first
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
        lengths = self._episodes.lengths
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
            self._layouts[length] = cut(self._episodes, self._ends, self.start.numel(), length)
        return self._layouts[length]
