"""Does fitted Q evaluation rank runs as their true returns do?

    python benchmarks/fqe.py --dataset gym/hopper/medium-replay-v0 RUN RUN …
    python benchmarks/fqe.py --dataset mine/walker2d/medium-replay-v0 --maker runs/collect/…
    python benchmarks/fqe.py --dataset gym/hopper/medium-replay-v0 --train 2400 --every 200

For each run and target return, each policy that the collector kept (every --every-th), or those
along a training of Decision S4 (every --every updates, and early ones): the value from the dataset
alone, and the mean return of the evaluation at that step. Then Spearman's rank correlation of the
two.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

import decision_s4
from decision_s4.agents import checkpoint, saved
from decision_s4.agents.actor import Actor
from decision_s4.agents.config import parse
from decision_s4.agents.data_maker import DataMaker, MakerOptions
from decision_s4.agents.fqe import FQEOptions, fitted_q_value
from decision_s4.agents.probes.sanity import rank_correlation
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs import datasets
from decision_s4.envs.timestep import Agent

LOCOMOTION = Path(decision_s4.__file__).parent / "configs/tasks/locomotion.yaml"
EARLY = (25, 50, 100)  # updates; beginners


def true_returns(run: Path, step: int) -> dict[float, float]:
    """Mean return by target of a run's evaluation at a step."""
    with (run / "eval.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
    return {float(row["target_return"]): float(row["return_mean"]) for row in rows}


def policies_of(run: Path) -> Iterator[tuple[str, Agent, float, float]]:
    """(name, agent, target, true return) of a run's last checkpoint."""
    found = checkpoint.load(run, "last")
    actor = saved.agent_of(saved.rebuild(found))
    for target, truth in true_returns(run, found.step).items():
        yield run.name, actor, target, truth


def kept_policies(folder: Path, every: int) -> Iterator[tuple[str, Agent, float, float]]:
    """The same of the policies that a collection evaluated."""
    env_id = checkpoint.load(folder).metadata["env_id"]
    maker = DataMaker(env_id, MakerOptions(), folder, seed=0, device="cpu")
    pairs = zip(maker.curve.steps, maker.curve.returns, strict=True)
    for step, truth in list(pairs)[::every]:
        yield f"step {step}", maker.policy_at(step), 0.0, truth


def policies_along(dataset: str, updates: int, every: int) -> Iterator[tuple]:
    """The same of one training."""
    flags = f"--config {LOCOMOTION} --dataset {dataset} --steps {updates} --device cpu"
    run = Training.begin(parse(TrainConfig, flags.split()), torch.device("cpu"))
    while not run.finished:
        run.update()
        if run.step in EARLY or run.step % every == 0:
            actor = Actor(run.learner.averaged_policy)
            for row in run.evaluate():
                yield f"update {run.step}", actor, row["target_return"], row["return_mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--maker", type=Path)
    parser.add_argument("--train", type=int, metavar="UPDATES")
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--updates", type=int, default=FQEOptions.updates)
    parser.add_argument("--discount", type=float, default=FQEOptions.discount)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = datasets.load(given.dataset)
    options = FQEOptions(updates=given.updates, discount=given.discount)
    estimates, truths, begin = [], [], time.perf_counter()
    print("| policy | target | fitted Q | true return |\n|---|---|---|---|")
    policies = kept_policies(given.maker, given.every) if given.maker else ()
    if given.train:
        policies = policies_along(given.dataset, given.train, given.every)
    for name, agent, target, truth in chain(policies, *map(policies_of, given.runs)):
        estimates.append(fitted_q_value(agent, data, target, options))
        truths.append(truth)
        print(f"| {name} | {target:g} | {estimates[-1]:.1f} | {truth:.0f} |", flush=True)
    seconds = (time.perf_counter() - begin) / len(truths)
    agreement = rank_correlation(torch.tensor(estimates), torch.tensor(truths))
    print(f"\nrank correlation {agreement:.2f}, {seconds:.0f} s a value")


if __name__ == "__main__":
    main()
