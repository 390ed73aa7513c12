"""TD3+BC or IQL on many datasets and seeds at once on one GPU, for the table of d4rl.py.

    python benchmarks/values_at_once.py --algorithm td3-bc        nine sets, three seeds
    python benchmarks/values_at_once.py --algorithm iql --datasets hopper-medium --seeds 0

`train.py --algo td3-bc` on a GPU waits for launches. Here all runs of a robot's shapes share them
(benchmarks/peers/value_learners.py), a CUDA graph replays several updates, and robots go on side by
side. Settings are those of train.py, and so are the initial weights and the evaluation of each
seed; transitions are drawn anew. Policies are evaluated every --keep-every updates by processes
beside the training. Rows are written as they come, to a file that `benchmarks/d4rl.py --add` takes;
their `seconds` are those of all runs together. A command that is stopped keeps its rows.
"""

import argparse
import copy
import multiprocessing
import shlex
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import csv_rows
import torch
from d4rl import DATASETS, names_of  # beside this file
from interleaved import interleaved
from peers.value_learners import IQLTogether, Tables, TD3BCTogether, Together

from decision_s4.agents.actor import Actor
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import parse
from decision_s4.agents.policy import Policy
from decision_s4.agents.value_training import ValueTraining
from decision_s4.envs.task import Task
from decision_s4.kernels.cuda_graph import Recorded

KINDS = {"td3-bc": TD3BCTogether, "iql": IQLTogether}
BLOCK = 10  # updates of the policy in a launch


class Run(NamedTuple):
    """One of the grid."""

    dataset: str
    seed: int
    training: ValueTraining
    policy: Policy
    """Untrained, on the CPU."""


class Evaluations:
    """Evaluates policies in processes of their own and writes the rows as they come."""

    def __init__(self, given: argparse.Namespace, pool: ProcessPoolExecutor):
        self.given, self.pool, self.begin = given, pool, time.monotonic()

    def add(self, runs: list[Run], states: Iterable[dict[str, torch.Tensor]], updates: int) -> None:
        """Each run's policy after so many updates."""
        for run, state in zip(runs, states, strict=True):
            config, policy = run.training.config, copy.deepcopy(run.policy)
            policy.load_state_dict(state)
            about = {"dataset": run.dataset, "algorithm": self.given.algorithm, "seed": run.seed}
            about |= {"seconds": round(time.monotonic() - self.begin)}
            about |= {"finished": updates >= config.steps, "step": updates}
            task = run.training.task, config.eval_episodes, run.seed
            future = self.pool.submit(evaluate, about, policy, *task)
            future.add_done_callback(self._write)

    def _write(self, future: Future) -> None:
        if future.exception():
            print(repr(future.exception()), flush=True)
            return
        csv_rows.append(self.given.rows, future.result())
        for row in future.result():
            print(
                *(row[name] for name in ("dataset", "seed", "step", "normalized_score")), flush=True
            )


def evaluate(
    about: dict[str, Any], policy: Policy, task: Task, episodes: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of one policy."""
    torch.set_num_threads(1)
    return [about | row for row in task.evaluate(Actor(policy.eval()), episodes, seed)]


def training_of(given: argparse.Namespace, dataset: str, seed: int) -> ValueTraining:
    """A run as train.py begins it."""
    algorithm, data = algorithm_of(given.algorithm), names_of(dataset, "minari", given.root)
    flags = ["--algo", given.algorithm, "--dataset", data, "--seed", str(seed), *given.flags]
    run = algorithm.begin(parse(algorithm.config, flags), torch.device("cpu"))
    assert isinstance(run, ValueTraining)
    return run


def groups_of(given: argparse.Namespace) -> list[list[Run]]:
    """All runs, those of the same spaces together."""
    groups: dict[str, list[Run]] = {}
    for seed in given.seeds:
        for dataset in given.datasets:
            training = training_of(given, dataset, seed)
            policy = copy.deepcopy(training.learner.policy)
            spaces = f"{policy.observation_space} {policy.action_space}"
            groups.setdefault(spaces, []).append(Run(dataset, seed, training, policy))
    return list(groups.values())


def trained(runs: list[Run], evaluations: Evaluations) -> Generator[None, None, None]:
    """Train the runs, with a pause after each launch."""
    given, config = evaluations.given, runs[0].training.config
    sets = {run.dataset: run.training.batches for run in runs}
    tables = Tables(list(sets.values()), [list(sets).index(r.dataset) for r in runs], given.device)
    together = KINDS[given.algorithm]([run.training.learner for run in runs], given.device)
    block = BLOCK * getattr(config, "policy_delay", 1)
    launch = launches(together, block, lambda: tables.draw(config.batch_steps))
    for done in range(block, config.steps + block, block):
        launch()
        if done % given.keep_every < block or done >= config.steps:
            evaluations.add(runs, together.policies(), done)
        yield


def launches(
    together: Together, count: int, draw: Callable[[], dict[str, torch.Tensor]]
) -> Callable[[], None]:
    """What makes `count` updates: on CUDA, after the first calls, in one launch."""

    def updates() -> None:
        for _ in range(count):
            together.update(draw())

    device = next(iter(together.weights.values())).device
    return Recorded(updates, device, tries=device.type == "cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--algorithm", choices=KINDS, default="td3-bc")
    parser.add_argument("--datasets", nargs="*", default=DATASETS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--root", default="gym", help="Minari ids begin with this")
    parser.add_argument("--flags", type=shlex.split, default=[], help="settings, as for train.py")
    parser.add_argument("--keep-every", type=int, default=20_000, help="updates")
    parser.add_argument("--workers", type=int, default=2, help="evaluate in so many processes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=Path, default=Path("runs/values.csv"), help="CSV file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=apart) as pool:
        groups, cuda = groups_of(given), torch.device(given.device).type == "cuda"
        evaluations = Evaluations(given, pool)
        for _ in interleaved((trained(runs, evaluations) for runs in groups), len(groups), cuda):
            pass


if __name__ == "__main__":
    main()
