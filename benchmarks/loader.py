"""The data loader's share of a training step, with the default settings.

    python benchmarks/loader.py [--updates 30] [any flag of train.py]

A step is a packed batch and a gradient update of it; both take turns, as in train.py.
"""

import argparse
import time

import numpy as np
from timing import machine

from decision_s4.agents.config import parse
from decision_s4.agents.devices import choose_device, use_threads
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs import datasets
from decision_s4.envs.task import Task


def measure(run: Training, steps: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Seconds of each batch and of each update (steps,), and environment steps in all."""
    loading, updating, taken = np.empty(steps), np.empty(steps), 0
    for i in range(steps):
        begin = time.perf_counter()
        batch = next(run.batches).to(run.device)
        loaded = time.perf_counter()
        run.learner.update(batch)
        loading[i], updating[i] = loaded - begin, time.perf_counter() - loaded
        taken += int(batch.valid.sum())
    return loading, updating, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=30)
    args, flags = parser.parse_known_args()
    config = parse(TrainConfig, flags)
    use_threads(config.threads)
    trajectories = datasets.load(config.dataset)
    print(machine())
    run = Training(config, trajectories, Task(None, ()), choose_device(config.device))
    measure(run, 5)  # warm-up
    loading, updating, taken = measure(run, args.updates)
    print(f"{trajectories.summary()}; {taken / args.updates:,.0f} steps a batch")
    print(f"batch  {np.median(loading) * 1e3:8.2f} ms, worst {loading.max() * 1e3:.2f} ms")
    print(f"update {np.median(updating) * 1e3:8.2f} ms")
    print(f"loader's share {loading.sum() / (loading.sum() + updating.sum()):.2%} of a step")


if __name__ == "__main__":
    main()
