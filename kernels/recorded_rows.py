"""A function of rows on CUDA, recorded once as a graph, then replayed in one launch.

A graph reads and writes memory of its own. Around each replay what is given is copied there, and
what it found is copied out, so that no tensor handed out changes afterwards.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.kernels.cuda_graph import WARMUP, aside, record

Run = Callable[[list[Tensor]], list[Tensor]]
ALIGNED = 4  # numbers: as complex ones, parts must begin at an even place


class RecordedRows:
    """`run`, a function of tensors (B, …) on CUDA whose rows do not touch one another.

    Records a graph for each power of two of rows, when first needed. Not differentiable.

    Raises:
        RuntimeError: at the first call, if `run` cannot be recorded, as what asks the GPU for a
            number cannot.
    """

    def __init__(self, run: Run):
        self.run = run
        self.recorded: dict[int, _Recorded] = {}

    @torch.inference_mode()
    def __call__(self, given: list[Tensor]) -> list[Tensor]:
        room = 1 << (len(given[0]) - 1).bit_length()
        if room not in self.recorded:
            self.recorded[room] = _Recorded(self.run, given, room)
        return self.recorded[room].replay(given)


class _Recorded:
    """A graph of `room` rows; fewer leave the rest as it was."""

    def __init__(self, run: Run, given: list[Tensor], room: int):
        self.place = [x.new_zeros(room, *x.shape[1:]) for x in given]
        with aside(given[0].device):
            for _ in range(WARMUP):
                found = run(self.place)
        self.given_by_type = _by_type(given)
        self.found = [_Joined(found, places) for places in _by_type(found)]
        self.run, _ = record(lambda: self._keep(run(self.place)), given[0].device)

    def _keep(self, found: list[Tensor]) -> None:
        for joined in self.found:
            joined.take(found)

    def replay(self, given: list[Tensor]) -> list[Tensor]:
        """One call with at most `room` rows."""
        rows = len(given[0])
        for places in self.given_by_type:  # one launch for all of a type
            into = [self.place[i][:rows] for i in places]
            torch._foreach_copy_(into, [given[i] for i in places])
        self.run()
        parts = {i: part for joined in self.found for i, part in joined.copied(rows)}
        return [parts[i] for i in range(len(parts))]


class _Joined:
    """Results of one type, side by side in one tensor: one copy hands out all."""

    def __init__(self, found: list[Tensor], places: list[int]):
        self.places = places
        self.shapes = [found[i].shape for i in places]
        self.sizes = [-(-shape.numel() // ALIGNED) * ALIGNED for shape in self.shapes]
        self.all = found[places[0]].new_zeros(sum(self.sizes))
        self.parts = self._parts(self.all)

    def _parts(self, joined: Tensor) -> list[Tensor]:
        pairs = zip(joined.split(self.sizes), self.shapes, strict=True)
        return [part[: shape.numel()].view(shape) for part, shape in pairs]

    def take(self, found: list[Tensor]) -> None:
        torch._foreach_copy_(self.parts, [found[i] for i in self.places])

    def copied(self, rows: int) -> list[tuple[int, Tensor]]:
        parts = self._parts(self.all.clone())
        return [(i, part[:rows]) for i, part in zip(self.places, parts, strict=True)]


def _by_type(tensors: list[Tensor]) -> list[list[int]]:
    """Places of the tensors of each type."""
    places: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(tensors):
        places.setdefault(x.dtype, []).append(i)
    return list(places.values())
