"""Batches laid out on the CPU with room to spare, so that one recording fits those that follow.

A graph's shapes are fixed. So is then what tells layers where episodes lie: chunks of each layer's
length, and the order in which a scan walks them. Shapes: B rows, T steps.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones.base import Mixer
from decision_s4.agents.backbones.s4 import LinearStateSpace
from decision_s4.agents.backbones.transformer import Transformer
from decision_s4.envs.spaces import Tree
from decision_s4.envs.steps import Batch
from decision_s4.kernels.chunk_layout import ChunkLayout, widened
from decision_s4.kernels.lti_scan import fastest
from decision_s4.kernels.lti_scan.chunked import chunk_length
from decision_s4.kernels.packing import Packing, Walk

STEPS, CHUNKS = 256, 4  # room is made in multiples of so many


class Learned(NamedTuple):
    """What an update reads of a Batch."""

    return_to_go: Tensor
    observation: Tree
    previous_action: Tree
    action: Tree
    start: Tensor
    valid: Tensor


class SpareRoom:
    """As many steps and chunks as the largest batch so far took, rounded up.

    Args:
        mixers: the layers that will read the batches.
        device: where they will.
    """

    def __init__(self, mixers: Iterable[Mixer], device: torch.device):
        self.device, mixers = device, list(mixers)
        self.steps = 0
        self.counts: dict[int, tuple[int, ...]] = {}
        """By the length of the chunks, how many there are room for in each rank."""
        self.windows = {each.context for each in mixers if isinstance(each, Transformer)}
        systems = [each for each in mixers if isinstance(each, LinearStateSpace)]
        self.fused = all(fastest(each.discretise()) == "triton" for each in systems)

    def lay_out(self, batch: Batch) -> dict[str, Any]:
        """The batch with steps to spare, and where its episodes lie: a tree of tensors."""
        self.steps = max(self.steps, _rounded(batch.start.shape[1], STEPS))
        parts = {name: getattr(batch, name) for name in Learned._fields}
        parts = tree_map(lambda leaf: _lengthened(leaf, self.steps), parts)
        packing = Packing(parts["start"], parts["valid"])
        return {"batch": parts, "walk": _walk(packing), "layouts": self._layouts(packing)}

    def read(self, given: dict[str, Any]) -> tuple[Learned, Packing]:
        """The batch and its packing, from what `lay_out` made of it last."""
        batch, walk = Learned(**given["batch"]), Walk(**{"order": None} | given["walk"])
        layouts = given["layouts"].items()
        layouts = [ChunkLayout(**parts, counts=self.counts[length]) for length, parts in layouts]
        return batch, Packing.prepared(batch.start, batch.valid, walk, *layouts)

    def _layouts(self, packing: Packing) -> dict[int, dict[str, Tensor]]:
        """By their length, where the chunks lie that attention and unfused scans ask for."""
        lengths = {min(window, self.steps) for window in self.windows}
        if not self.fused:
            lengths.add(chunk_length(self.steps, self.device))
        return {length: self._layout(packing, length) for length in sorted(lengths)}

    def _layout(self, packing: Packing, length: int) -> dict[str, Tensor]:
        """Where its chunks lie, with chunks to spare."""
        layout, known = packing.chunks(length), self.counts.get(length, ())
        ranks = max(len(known), len(layout.counts))
        pairs = zip(_filled(known, ranks), _filled(layout.counts, ranks), strict=True)
        counts = tuple(max(room, _rounded(count, CHUNKS)) for room, count in pairs)
        self.counts[length] = counts
        wide = widened(layout, counts)
        names = [field.name for field in fields(wide) if field.name != "counts"]
        return {name: getattr(wide, name) for name in names}


def _walk(packing: Packing) -> dict[str, Tensor]:
    return {name: x for name, x in packing.walk._asdict().items() if x is not None}


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _filled(counts: tuple[int, ...], length: int) -> tuple[int, ...]:
    return counts + (0,) * (length - len(counts))


def _lengthened(leaf: Tensor, steps: int) -> Tensor:
    """(B, T, …) with steps of zeros at the end."""
    longer = leaf.new_zeros(len(leaf), steps, *leaf.shape[2:])
    longer[:, : leaf.shape[1]] = leaf
    return longer
