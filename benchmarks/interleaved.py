"""Runs side by side in one thread: each a generator that pauses after every launch of its work."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar

import torch

R = TypeVar("R")


class OwnRandom:
    """torch's random numbers from a seed on, whatever else draws in between."""

    def __init__(self, seed: int):
        self.state = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, function: Callable[..., R], *arguments: Any) -> R:
        """What the function makes of them."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            return function(*arguments)
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)


def interleaved(runs: Iterable[Generator[Any, Any, R]], count: int, cuda: bool) -> Iterator[R]:
    """What each run returns, as it ends; `count` go on in turns, each on a stream of its own."""
    waiting = iter(runs)
    running: list[tuple[Generator[Any, Any, R], torch.cuda.Stream | None]] = []
    while True:
        new = islice(waiting, count - len(running))
        running += [(run, torch.cuda.Stream() if cuda else None) for run in new]
        if not running:
            return
        for each in tuple(running):
            run, stream = each
            try:
                with torch.cuda.stream(stream) if cuda else nullcontext():
                    next(run)
            except StopIteration as end:
                running.remove(each)
                yield end.value


def finished(run: Generator[Any, Any, R]) -> R:
    """What a run alone returns."""
    return next(interleaved([run], 1, cuda=False))
