"""Many Decision Transformers trained at once on one GPU: a grid in little more than a run's time.

    python benchmarks/transformers_at_once.py --seeds 0 --workers 8     nine runs of 100,000 updates

`train.py --algo decision-transformer` on a GPU waits for launches. Here all runs share them
(benchmarks/peers/decision_transformers.py) and a CUDA graph replays them. Settings are those of
configs/decision-transformer.yaml, initial weights and evaluation those of `train.py` at each seed;
windows and dropout are drawn anew. Over several GPUs: one command a seed, each with its own
--output. Weights are kept every --keep-every updates and evaluated by processes beside the training
on the CPU, those of its second half afterwards on the GPU, the last ones first. A command that was
stopped goes on from the weights it kept. Rows are written as they come, to a file that
`benchmarks/d4rl.py --add` takes; their `seconds` are those of all runs together.
"""

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import csv_rows
import torch
from d4rl import DATASETS, names_of  # beside this file
from peers.decision_transformers import Learner, Windows, stacked, unstacked

from decision_s4.agents.actor import Actor
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import parse
from decision_s4.agents.options import part
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.training import TrainConfig
from decision_s4.envs import datasets
from decision_s4.envs.task import task_of
from decision_s4.envs.trajectories import Trajectories
from decision_s4.kernels.cuda_graph import Recorded

LABEL = "decision-transformer"
STATE = "trainer.pt"
Keep = Callable[[], None]


def train(learner: Learner, seconds: float, most: int, every: int, keep: Keep) -> None:
    """Update until the time is over; `keep` is called every so many updates and at the end."""
    begin, kept = time.monotonic(), int(learner.step)
    if kept >= most:
        return
    update = Recorded(learner.update, learner.step.device, tries=learner.step.is_cuda)
    while (done := int(learner.step)) < most and time.monotonic() - begin < seconds:
        for _ in range(min(100, most - done)):
            update()
        before, done = done, int(learner.step)
        if done // 1000 > before // 1000:
            spent = time.monotonic() - begin
            print(f"{done} updates, {spent:.0f} s, loss {learner.loss.mean():.4f}", flush=True)
        if done // every > before // every:
            keep()
            kept = done
    if kept < int(learner.step):
        keep()


def config_of(flags: list[str]) -> TrainConfig:
    """Decision Transformer's settings with the flags of train.py on top."""
    config = parse(algorithm_of(LABEL).config, ["--algo", LABEL, *flags])
    assert isinstance(config, TrainConfig)
    return config


def new_policy(data: Trajectories, config: TrainConfig, seed: int) -> Policy:
    """As train.py begins at that seed."""
    seed_everything(seed)
    options = part(config, PolicyOptions)
    policy = make_policy(data.observation_space, data.action_space, options)
    policy.set_statistics(*data.observation_statistics())
    return policy


class Point(NamedTuple):
    """Weights of all runs, kept at one moment of their training."""

    path: Path
    updates: int
    seconds: int


class Evaluations:
    """Evaluates what is kept in processes of their own and writes its rows as they come."""

    def __init__(self, given: argparse.Namespace, pool: ProcessPoolExecutor):
        self.given, self.pool, self.runs = given, pool, runs_of(given)
        columns = ("step", "dataset", "seed")
        rows = csv_rows.read(given.rows)
        self.done = {tuple(row[name] for name in columns) for row in rows}
        self.pending: dict[Future, tuple[Point, int]] = {}
        self.waiting: list[tuple[Point, int]] = []

    def add(self, point: Point, meanwhile: bool) -> None:
        """All runs of the point that have no rows yet: on the CPU meanwhile, or in the end."""
        for run, (dataset, seed) in enumerate(self.runs):
            if (str(point.updates), dataset, str(seed)) in self.done:
                continue
            if meanwhile:
                self._submit(point, run, "cpu")
            else:
                self.waiting.append((point, run))

    def finish(self, device: str) -> None:
        """What waits, and what has not begun on the CPU: there, the newest weights first."""
        late = [task for future, task in self.pending.items() if future.cancel()]
        newest_first = sorted(self.waiting + late, key=lambda task: (-task[0].updates, task[1]))
        for point, run in newest_first:
            self._submit(point, run, device)

    def _submit(self, point: Point, run: int, device: str) -> None:
        future = self.pool.submit(evaluate, self.given, point, run, device)
        self.pending[future] = point, run
        future.add_done_callback(self._write)

    def _write(self, future: Future) -> None:
        if future.cancelled():
            return
        point, run = self.pending[future]
        if future.exception():
            print(f"{point.path} {self.runs[run]}: {future.exception()!r}", flush=True)
            return
        rows = future.result()
        csv_rows.append(self.given.rows, rows)
        scores = [round(row["normalized_score"], 1) for row in rows]
        print(f"{point.updates} updates, {self.runs[run]}: {scores}", flush=True)


def evaluate(given: argparse.Namespace, point: Point, run: int, device: str) -> list[dict]:
    """Rows of one run at one point."""
    torch.set_num_threads(1)
    config, (dataset, seed) = config_of(given.flags), runs_of(given)[run]
    data = _loaded(dataset, given.root)
    policy = new_policy(data, config, seed)
    unstacked(torch.load(point.path, weights_only=True, mmap=True), run, policy)
    task = task_of(data, config.env, config.target_returns, config.reference_scores)
    about = {"dataset": dataset, "algorithm": LABEL, "seed": seed, "seconds": point.seconds}
    about |= {"finished": point.updates >= config.steps, "step": point.updates}
    rows = task.evaluate(Actor(policy.to(device).eval()), given.episodes, seed)
    return [about | row for row in rows]


@functools.cache
def _loaded(dataset: str, root: str) -> Trajectories:
    return datasets.load(names_of(dataset, "minari", root))


def runs_of(given: argparse.Namespace) -> list[tuple[str, int]]:
    """(dataset, seed) of every run."""
    return [(dataset, seed) for seed in given.seeds for dataset in given.datasets]


def learner_of(given: argparse.Namespace) -> Learner:
    """All runs at their beginning."""
    config, runs = config_of(given.flags), runs_of(given)
    sets = {name: _loaded(name, given.root) for name in given.datasets}
    places = [list(sets).index(dataset) for dataset, _ in runs]
    windows = Windows(list(sets.values()), places, given.device)
    policies = [new_policy(sets[dataset], config, seed) for dataset, seed in runs]
    width, actions = (windows.data[name].shape[-1] for name in ("observation", "action"))
    weights = {k: v.to(given.device) for k, v in stacked(policies, width, actions).items()}
    return Learner(weights, windows, config)


def train_all(given: argparse.Namespace, evaluations: Evaluations) -> None:
    """Train the runs, keep their weights and have them evaluated."""
    learner, state = learner_of(given), given.output / STATE
    begin, points, most = time.monotonic(), [], learner.config.steps
    if state.exists():
        saved = torch.load(state, weights_only=True)
        learner.load_state_dict(saved["learner"])
        points = [Point(Path(path), *numbers) for path, *numbers in saved["points"]]
        begin -= points[-1].seconds
        print(f"on from {points[-1].updates} updates", flush=True)
        for point in points:
            evaluations.add(point, point.updates <= most / 2)

    def keep() -> None:
        updates, seconds = int(learner.step), round(time.monotonic() - begin)
        points.append(Point(given.output / f"weights-{updates}.pt", updates, seconds))
        kept = {name: x.detach().cpu() for name, x in learner.weights.items()}
        _save(kept, points[-1].path)
        plain = [[str(point.path), *point[1:]] for point in points]
        _save({"learner": learner.state_dict(), "points": plain}, state)
        evaluations.add(points[-1], updates <= most / 2)  # later ones would outlast the training

    train(learner, given.seconds, most, given.keep_every, keep)
    last = points[-1]
    print(f"{len(runs_of(given))} runs, {last.updates} updates, {last.seconds} s", flush=True)


def _save(tree: dict, path: Path) -> None:
    fresh = path.with_suffix(".tmp")
    torch.save(tree, fresh)
    fresh.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="*", default=DATASETS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", default="gym", help="Minari ids begin with this")
    parser.add_argument("--flags", type=str.split, default=[], help="settings, as for train.py")
    parser.add_argument("--seconds", type=float, default=1e9, help="then evaluate what is there")
    parser.add_argument("--keep-every", type=int, default=20_000, help="updates")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="evaluate in so many processes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/transformers"))
    parser.add_argument("--rows", type=Path, help="CSV file; default: evaluations.csv in --output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    given.output.mkdir(parents=True, exist_ok=True)
    given.rows = given.rows or given.output / "evaluations.csv"
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=apart) as pool:
        evaluations = Evaluations(given, pool)
        train_all(given, evaluations)
        evaluations.finish(given.device)


if __name__ == "__main__":
    main()
