"""Work on CUDA recorded once as a graph, to be replayed in one launch."""

import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
LOG = logging.getLogger(__name__)
INSTEAD = "it runs operation by operation"

WARMUP = 3  # runs aside before a recording: libraries take their workspaces in the first calls


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """A stream aside on CUDA, after and before what the current one does."""
    if device.type != "cuda":
        yield
        return
    stream, current = _recordable_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def record(run: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """(what runs it again, where it leaves what it returned). Raises RuntimeError where it can't.

    Other threads may go on allocating meanwhile, as those that load data do.
    """
    pool = torch.cuda.graph_pool_handle()
    with torch.cuda.stream(_recordable_stream(device)), _garbage_left():
        graph = torch.cuda.CUDAGraph()
        try:
            with _recording(graph, pool):
                found = run()
        except BaseException:
            _close(pool)
            raise
    return graph.replay, found


def _recordable_stream(device: torch.device) -> torch.cuda.Stream:
    """The current stream; another in place of the default one, on which nothing can be recorded.

    On a stream of one's own work stays there: cuBLAS keeps a workspace a stream, which graphs that
    run side by side must not share.
    """
    current = torch.cuda.current_stream(device)
    if current != torch.cuda.default_stream(device):
        return current
    return _second_stream(current.device, threading.get_ident())


@functools.cache
def _second_stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """One a thread: what another thread runs must not fall into a recording."""
    return torch.cuda.Stream(device)


def _recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> torch.cuda.graph:
    stream = torch.cuda.current_stream()
    return torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")


@contextmanager
def _garbage_left() -> Iterator[None]:
    """No collection meanwhile: to free another graph breaks a recording."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _close(pool: Any) -> None:
    """Ends a recording that failed.

    Where CUDA gave it up, torch stops halfway: the pool stays open, so that memory that several
    streams used is never free again, and torch.randn on CUDA raises until a recording ends well.
    """
    with suppress(RuntimeError):  # it was closed, as where what failed was not CUDA
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with _recording(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


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
            self.graph = record(self.recording, self.device)
        except RuntimeError as error:
            self.tries, reason = False, str(error).partition("\n")[0]
            LOG.warning("work on CUDA cannot be recorded (%s); %s", reason, INSTEAD)
