"""Many Decision Transformers trained at once on one GPU: a grid in little more than a run's time.

    python benchmarks/transformers_at_once.py --seconds 300 --workers 3

`train.py --algo decision-transformer` on a GPU waits for launches. Here all runs share them
(benchmarks/peers/decision_transformers.py) and a CUDA graph replays them. Settings are those of
configs/decision-transformer.yaml, initial weights and evaluation those of `train.py` at each seed;
windows and dropout are drawn anew. Written to --output: the weights, and evaluations-*.csv as
`benchmarks/d4rl.py --add` takes them, whose `seconds` are those of all runs together.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import csv_rows
import torch
from d4rl import DATASETS, names_of  # beside this file
from peers.decision_transformers import Learner, Windows, stacked, unstacked

from decision_s4.agents.actor import Actor
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import parse
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.training import TrainConfig, part
from decision_s4.envs import datasets
from decision_s4.envs.task import task_of
from decision_s4.envs.trajectories import Trajectories
from decision_s4.kernels.cuda_graph import WARMUP, aside, record

LABEL = "decision-transformer"


def train(learner: Learner, seconds: float, most: int) -> int:
    """Update until the time is over; the number of updates."""
    update, begin = learner.update, time.monotonic()
    if learner.step.is_cuda:
        update = _graph(learner)
    while time.monotonic() - begin < seconds and learner.step < most:
        for _ in range(min(100, most - int(learner.step))):
            update()
        done, spent = int(learner.step), time.monotonic() - begin
        if done % 1000 < 100:
            print(f"{done} updates, {spent:.0f} s, loss {learner.loss.mean():.4f}", flush=True)
    return int(learner.step)


def _graph(learner: Learner) -> Callable[[], None]:
    """An update as one recorded graph; plain updates where it cannot be recorded."""
    with aside(learner.step.device):
        for _ in range(WARMUP):
            learner.update()
    try:
        return record(learner.update)[0]
    except RuntimeError as error:
        print(f"not recorded: {error}", flush=True)
        return learner.update


def config_of(flags: list[str]) -> TrainConfig:
    """Decision Transformer's settings with the flags of train.py on top."""
    return parse(algorithm_of(LABEL).config, ["--algo", LABEL, *flags])


def new_policy(data: Trajectories, config: TrainConfig, seed: int) -> Policy:
    """As train.py begins at that seed."""
    seed_everything(seed)
    options = part(config, PolicyOptions)
    policy = make_policy(data.observation_space, data.action_space, options)
    policy.set_statistics(*data.observation_statistics())
    return policy


def evaluate(given: argparse.Namespace) -> None:
    """Rows of every n-th run, appended as soon as they are there."""
    config, (index, count) = config_of(given.flags), given.share
    saved = torch.load(given.output / "weights.pt", weights_only=True)
    path = given.output / f"evaluations-{index}.csv"
    for run, (dataset, seed) in list(enumerate(runs_of(given)))[index::count]:
        data = datasets.load(names_of(dataset, "minari", given.root))
        policy = new_policy(data, config, seed)
        unstacked(saved["weights"], run, policy)
        task = task_of(data, config.env, config.target_returns, config.reference_scores)
        about = {"dataset": dataset, "algorithm": LABEL, "seed": seed}
        about |= {"seconds": saved["seconds"], "finished": True, "step": saved["updates"]}
        rows = task.evaluate(Actor(policy.to(given.device).eval()), given.episodes, seed)
        csv_rows.append(path, [about | row for row in rows])
        print(dataset, seed, [round(row["normalized_score"], 1) for row in rows], flush=True)


def runs_of(given: argparse.Namespace) -> list[tuple[str, int]]:
    """(dataset, seed) of every run."""
    return [(dataset, seed) for seed in given.seeds for dataset in given.datasets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="*", default=DATASETS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", default="gym", help="Minari ids begin with this")
    parser.add_argument("--flags", type=str.split, default=[], help="settings, as for train.py")
    parser.add_argument("--seconds", type=float, default=1e9, help="then evaluate what is there")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="evaluate in so many processes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/transformers"))
    parser.add_argument("--share", type=int, nargs=2, help="evaluate every n-th run: i n")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    if given.share:
        evaluate(given)
    else:
        given.output.mkdir(parents=True, exist_ok=True)
        train_all(given)
        evaluate_over_processes(given.workers)


def evaluate_over_processes(count: int) -> None:
    """Each takes a share of the runs: this same command with --share."""
    command = [sys.executable, *sys.argv, "--share"]
    workers = [subprocess.Popen([*command, str(i), str(count)]) for i in range(count)]
    for worker in workers:
        worker.wait()


def train_all(given: argparse.Namespace) -> None:
    """Train the runs and keep their weights."""
    config, runs = config_of(given.flags), runs_of(given)
    sets = {name: datasets.load(names_of(name, "minari", given.root)) for name in given.datasets}
    places = [list(sets).index(dataset) for dataset, _ in runs]
    windows = Windows(list(sets.values()), places, given.device)
    policies = [new_policy(sets[dataset], config, seed) for dataset, seed in runs]
    width, actions = (windows.data[name].shape[-1] for name in ("observation", "action"))
    weights = {k: v.to(given.device) for k, v in stacked(policies, width, actions).items()}
    begin = time.monotonic()
    learner = Learner(weights, windows, config)
    updates = train(learner, given.seconds, config.steps)
    kept = {name: x.detach().cpu() for name, x in learner.weights.items()}
    spent = round(time.monotonic() - begin)
    saved = {"weights": kept, "updates": updates, "seconds": spent}
    torch.save(saved, given.output / "weights.pt")
    print(f"{len(runs)} runs, {updates} updates each, {spent} s", flush=True)


if __name__ == "__main__":
    main()
