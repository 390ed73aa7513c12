"""Work on CUDA recorded once as a graph, to be replayed in one launch."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

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


class Recording:
    """Runs again what was recorded; holds what it reads beside what it made itself."""

    def __init__(self, graph: torch.cuda.CUDAGraph, read: list[Any]):
        self.graph, self.read = graph, read

    def __call__(self) -> None:
        self.graph.replay()


def record(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """(what runs it again, where it leaves what it returned). Raises RuntimeError where it can't.

    Other threads may go on allocating meanwhile, as those that load data do. On a stream other than
    the default it is recorded there: cuBLAS keeps a workspace a stream, which graphs that run side
    by side must not share.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    stream = None if current == torch.cuda.default_stream() else current
    recorded = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
    with _reading() as read, recorded:
        found = run()
    return Recording(graph, read), found


_READ: list[list[Any]] = []  # of the recordings under way


@contextmanager
def _reading() -> Iterator[list[Any]]:
    """What `remembered` functions give meanwhile."""
    read: list[Any] = []
    _READ.append(read)
    try:
        yield read
    finally:
        _READ.remove(read)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: keeps what a function gave for its last arguments, tensors on a device too.

    A recording must not copy to the device, so it needs such tensors to be there; it reads them
    where they lie, and holds them when others have taken their place here. They are to be whole
    when the function returns, for any stream: made on the CPU, then moved.
    """
    kept = functools.lru_cache(maxsize=256)(torch.inference_mode(False)(function))

    @functools.wraps(function)
    def ask(*arguments: Any) -> Any:
        found = kept(*arguments)
        for read in _READ:
            read.append(found)
        return found

    return ask
