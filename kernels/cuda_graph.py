"""Work on CUDA recorded once as a graph, to be replayed in one launch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
LOG = logging.getLogger(__name__)
INSTEAD = "it runs operation by operation"

WARMUP = 3  # runs aside before a recording: libraries take their workspaces in the first calls


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """A stream of its own on CUDA, after and before what the current one does."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def record(run: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """(what runs it again, where it leaves what it returned). Raises RuntimeError where it can't.

    Other threads may go on allocating meanwhile, as those that load data do. On a stream other than
    the default it is recorded there: cuBLAS keeps a workspace a stream, which graphs that run side
    by side must not share.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream = None if current == torch.cuda.default_stream() else current
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        found = run()
    return graph.replay, found


class Recorded(Generic[T]):
    """Calls of `run`: the first WARMUP on a stream aside, later ones replayed as one graph.

    What a replay returns lies where the next one writes. Where `run` cannot be recorded, which the
    log says once, all calls are as the first.

    Args:
        run: works on tensors that stay where they are.
        device: where they are.
        recording: what is recorded in place of `run`, where a graph differs.
        tries: whether to record at all.
    """

    def __init__(
        self,
        run: Callable[[], T],
        device: torch.device,
        recording: Callable[[], T] | None = None,
        tries: bool = True,
    ):
        self.run, self.device, self.recording, self.tries = run, device, recording or run, tries
        self.calls = 0
        self.graph: tuple[Callable[[], None], T] | None = None
        """What replays, and where it leaves what `run` returns; None before the recording."""

    def __call__(self) -> T:
        if self.calls >= WARMUP and self.tries and self.graph is None:
            self._record()
        self.calls += 1
        if self.graph is None:
            with aside(self.device):
                return self.run()
        replay, found = self.graph
        replay()
        return found

    def _record(self) -> None:
        try:
            self.graph = record(self.recording)
        except RuntimeError as error:
            self.tries, reason = False, str(error).partition("\n")[0]
            LOG.warning("work on CUDA cannot be recorded (%s); %s", reason, INSTEAD)
