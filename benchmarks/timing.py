"""Medians of interleaved repeats: what drifts on a shared machine drifts for all contenders."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 20
) -> dict[str, np.ndarray]:
    """Seconds of each call (repeats,), the contenders taking turns."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    seconds = {name: np.empty(repeats) for name in contenders}
    for i in range(repeats):
        for name, call in contenders.items():
            begin = time.perf_counter()
            call()
            seconds[name][i] = time.perf_counter() - begin
    return seconds
