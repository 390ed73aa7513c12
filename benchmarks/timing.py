"""Medians of interleaved repeats: what drifts on a shared machine drifts for all contenders."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch


def machine() -> str:
    """What a figure was measured on, and how busy that was."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    level, load = torch.backends.cpu.get_cpu_capability(), os.getloadavg()[0]
    cpu = f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}, {level}"
    return f"{cpu}; torch {torch.__version__}; load before {load:.1f}"


def interleaved_on_gpu(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, np.ndarray]:
    """As `interleaved`, by the clock of the GPU: work is queued while the call before runs."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    marks = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            call()
            pair[1].record()
            marks[name].append(pair)
    torch.cuda.synchronize()
    return {
        name: np.array([begin.elapsed_time(end) / 1e3 for begin, end in pairs])
        for name, pairs in marks.items()
    }


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
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
