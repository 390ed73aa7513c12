"""Resident memory of a training from a large dataset.

    python benchmarks/memory.py                         10 million steps, 17 + 6 numbers each
    python benchmarks/memory.py --steps 1000000 --observation 11

Writes a synthetic dataset in the form that `datasets.load` converts every dataset to, trains a few
updates from it in a process of its own, and prints that process's peak resident set. Pages of the
mapped files count in it, although the system takes them back when it needs room.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gymnasium import spaces

from decision_s4.envs.trajectories import DatasetInfo, Episode
from decision_s4.envs.trajectory_cache import open_trajectories, write_trajectories

LENGTH = 1000


def episodes(steps: int, observation: int, action: int) -> Iterator[Episode]:
    """Noise, in episodes of LENGTH steps, cut at their ends."""
    draw = np.random.default_rng(0)
    ends = np.arange(LENGTH) == LENGTH - 1
    for _ in range(steps // LENGTH):
        yield Episode(
            draw.standard_normal((LENGTH + 1, observation), np.float32),
            draw.uniform(-1, 1, (LENGTH, action)).astype(np.float32),
            draw.standard_normal(LENGTH),
            np.zeros(LENGTH, bool),
            ends,
        )


def train(folder: Path, updates: int) -> None:
    """A few updates; prints how long the start took, the time of an update and the peak."""
    import torch

    from decision_s4.agents.training import TrainConfig, Training
    from decision_s4.envs.task import task_of

    torch.set_num_threads(1)
    begin = time.perf_counter()
    data = open_trajectories(folder, "synthetic")
    config = TrainConfig(steps=updates, eval_episodes=1)
    run = Training(config, data, task_of(data, "none"), torch.device("cpu"))
    started = time.perf_counter()
    while not run.finished:
        run.update()
    each = (time.perf_counter() - started) / updates
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{data.num_steps:,} steps, {size(folder):.2f} GB on disk: ready in ", end="")
    print(f"{started - begin:.1f} s, {1000 * each:.0f} ms an update, peak resident {peak:.2f} GB")


def size(folder: Path) -> float:
    """GB of all files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--observation", type=int, default=17)
    parser.add_argument("--action", type=int, default=6)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="of a dataset written before")
    given = parser.parse_args()
    if given.folder:
        return train(given.folder, given.updates)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        info = DatasetInfo(
            name="synthetic",
            observation_space=spaces.Box(-np.inf, np.inf, (given.observation,)),
            action_space=spaces.Box(-1, 1, (given.action,)),
        )
        write_trajectories(folder, info, episodes(given.steps, given.observation, given.action))
        flags = ["--folder", str(folder), "--updates", str(given.updates)]
        subprocess.run([sys.executable, __file__, *flags], check=True)
    return None


if __name__ == "__main__":
    main()
