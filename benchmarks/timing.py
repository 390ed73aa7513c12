"""Medians of interleaved repeats: what drifts on a shared machine drifts for all contenders."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

K = TypeVar("K")


def machine() -> str:
    """What a figure was measured on, and how busy that was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    level, load = torch.backends.cpu.get_cpu_capability(), os.getloadavg()[0]
    cpu = f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}, {level}"
    return f"{cpu}; torch {torch.__version__}; load before {load:.1f}"


def interleaved_on_gpu(
    contenders: Mapping[K, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[K, np.ndarray]:
    """As `interleaved`, by the clock of the GPU: work is queued while the call before runs."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    marks: dict[K, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            marks[name].append((begin, end))
    torch.cuda.synchronize()
    return {
        name: np.array([begin.elapsed_time(end) / 1e3 for begin, end in pairs])
        for name, pairs in marks.items()
    }


def interleaved(
    contenders: Mapping[K, Callable[[], object]],
    repeats: int,
    warmup: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, np.ndarray]:
    """Seconds of each call (repeats,) on `clock`, the contenders taking turns."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    seconds = {name: np.empty(repeats) for name in contenders}
    for i in range(repeats):
        for name, call in contenders.items():
            begin = clock()
            call()
            seconds[name][i] = clock() - begin
    return seconds
