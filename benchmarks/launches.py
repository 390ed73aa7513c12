"""Where the launches of an update are: `python benchmarks/launches.py [--device cuda]`.

For Decision S4 on s4 and s4d, operation by operation and, on CUDA, replayed as one graph: how many
kernels an update launches, how long they run, how long it takes from the first to the last, and a
CSV of counts and times by kernel and by operator with its shapes. Times are of the profiler.
"""

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import torch
from timing import machine
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training import RUNS, WARMUP, recorded, updates

UPDATES = 4  # in a profile


def profiled(flags: str, device: torch.device) -> profile:
    """Some updates, after those in which recordings are made."""
    update, _ = updates(flags, device, together=1)
    for _ in range(WARMUP):
        update()
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=activities, record_shapes=True) as found:
        for _ in range(UPDATES):
            update()
    return found


def summary(name: str, found: profile) -> None:
    """One line: launches of an update, their time, and the time that they span."""
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / UPDATES
    print(f"{name}: {len(kernels) / UPDATES:.0f} launches, {busy / 1e3:.2f} ms in kernels")


def rows_of(name: str, found: profile) -> list[list[object]]:
    """(run, what, name, shapes, times an update, µs an update), most often first.

    On CUDA an operator's time is that of the kernels that it launched itself.
    """
    count: Counter[tuple[str, ...]] = Counter()
    spent: dict[tuple[str, ...], float] = defaultdict(float)
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            key = name, "kernel", event.name, ""
            count[key] += 1
            spent[key] += event.time_range.elapsed_us()
    for group in found.key_averages(group_by_input_shape=True):
        key = name, "operator", group.key, str(group.input_shapes)
        spends = group.self_device_time_total if count else group.self_cpu_time_total
        if group.device_type == DeviceType.CPU and spends:
            count[key], spent[key] = group.count, spends
    return [[*key, n / UPDATES, round(spent[key] / UPDATES, 2)] for key, n in count.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, default=Path("launches.csv"))
    given = parser.parse_args()
    print(machine(), flush=True)
    runs = RUNS | recorded(RUNS) if given.device == "cuda" else RUNS
    with given.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "what", "name", "shapes", "times", "microseconds"])
        for name, flags in runs.items():
            found = profiled(flags, torch.device(given.device))
            summary(name, found)
            writer.writerows(rows_of(name, found))
            file.flush()


if __name__ == "__main__":
    main()
