"""Does fitted Q evaluation rank runs as their true returns do?

    python benchmarks/fqe.py --dataset gym/hopper/medium-replay-v0 RUN RUN …

For each run and target return: the value from the dataset alone, and the mean return that the run's
eval.csv has for that step. Then Spearman's rank correlation of the two.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.actor import Actor
from decision_s4.agents.fqe import FQEOptions, fitted_q_value
from decision_s4.envs import datasets
from decision_s4.envs.statistics import rank_correlation


def true_returns(run: Path, step: int) -> dict[float, float]:
    """Mean return by target of a run's evaluation at a step."""
    with (run / "eval.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
    return {float(row["target_return"]): float(row["return_mean"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--updates", type=int, default=FQEOptions.updates)
    parser.add_argument("--discount", type=float, default=FQEOptions.discount)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = datasets.load(given.dataset)
    options = FQEOptions(updates=given.updates, discount=given.discount)
    estimates, truths, begin = [], [], time.perf_counter()
    print("| run | target | fitted Q | true return |\n|---|---|---|---|")
    for run in given.runs:
        found = checkpoint.load(run, "last")
        actor = Actor(saved.rebuild(found))
        for target, truth in true_returns(run, found.step).items():
            estimates.append(fitted_q_value(actor, data, target, options))
            truths.append(truth)
            print(f"| {run.name} | {target:g} | {estimates[-1]:.1f} | {truth:.0f} |", flush=True)
    seconds = (time.perf_counter() - begin) / len(truths)
    print(f"\nrank correlation {rank_correlation(estimates, truths):.2f}, {seconds:.0f} s a value")


if __name__ == "__main__":
    main()
