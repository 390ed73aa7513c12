"""Work on CUDA recorded once as a graph, to be replayed in one launch."""

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


def record(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
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
