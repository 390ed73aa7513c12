"""TD3+BC and IQL beside d3rlpy's on the same data: the same algorithm should return the same.

    python -m venv peer && peer/bin/pip install d3rlpy 'gymnasium[mujoco]==1.0.0'
    python benchmarks/d3rlpy_check.py --python peer/bin/python --dataset gym/hopper/medium-v0

d3rlpy pins an old gymnasium, so it has an environment of its own. Mean returns of each evaluation,
side by side.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from decision_s4.envs import datasets
from decision_s4.envs.trajectories import Trajectories

PEER = Path(__file__).parent / "peers/d3rlpy_scores.py"


def export(data: Trajectories, path: Path) -> None:
    """The arrays that d3rlpy takes, without the observations after the last actions."""
    step = np.arange(data.num_steps)
    returns = data.returns
    np.savez(
        path,
        observations=data.observations[data.observation_index(step)].astype(np.float32),
        actions=np.asarray(data.actions, np.float32),
        rewards=np.asarray(data.rewards, np.float32),
        terminals=np.asarray(data.terminations, np.float32),
        timeouts=np.isin(step, data.action_offsets[1:] - 1) & ~np.asarray(data.terminations),
        reward_scale=1000 / (returns.max() - returns.min()),
        env_id=data.env_id or "",
    )


def ours(given: argparse.Namespace, seed: int, folder: Path) -> list[float]:
    """Mean return of each evaluation of train.py."""
    command = [sys.executable, "-m", "decision_s4.train", "--algo", given.algo, "--no-video"]
    command += ["--dataset", given.dataset, "--steps", str(given.steps), "--seed", str(seed)]
    command += ["--eval-every", str(given.every), "--eval-episodes", str(given.episodes)]
    command += ["--device", "cpu", "--run-dir", str(folder / f"run-{seed}")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (folder / f"run-{seed}/eval.csv").open() as file:
        return [float(row["return_mean"]) for row in csv.DictReader(file)]


def theirs(given: argparse.Namespace, seed: int, path: Path) -> list[float]:
    """The same of d3rlpy."""
    numbers = (given.steps, given.every, given.episodes, seed)
    command = [given.python, str(PEER), given.algo, str(path), *map(str, numbers)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line)["return"] for line in said.splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="an interpreter that has d3rlpy")
    parser.add_argument("--dataset", default="gym/hopper/medium-v0")
    parser.add_argument("--algo", choices=["td3-bc", "iql"], default="td3-bc")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=5_000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    given = parser.parse_args()
    print("| seed | updates | ours | d3rlpy |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(datasets.load(given.dataset), folder / "data.npz")
        for seed in given.seeds:
            pairs = zip(
                ours(given, seed, folder), theirs(given, seed, folder / "data.npz"), strict=True
            )
            for i, (own, peer) in enumerate(pairs, 1):
                print(f"| {seed} | {i * given.every} | {own:.0f} | {peer:.0f} |", flush=True)


if __name__ == "__main__":
    main()
