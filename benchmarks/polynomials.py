"""Policies played as polynomials, by the weight of range-aware training: how close, what returns.

    python benchmarks/polynomials.py --processes 2                 what is missing, then the table
    python benchmarks/polynomials.py --processes 0                 only the table
    python benchmarks/polynomials.py --backbones s4d --seeds 0

Each run is `train.py --backbone NAME --range-weight W` on one thread, then played as it is (degree
0) and as a polynomial of each degree, as `evaluate.py --polynomial` does; two minutes on one core.
Rows are written as they come and not made again.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import csv_rows
import torch
from csv_rows import Row

from decision_s4.agents.actor import Actor
from decision_s4.agents.polynomial import PolynomialAgent
from decision_s4.agents.polynomial_report import errors, fit
from decision_s4.agents.settings import settings
from decision_s4.agents.training import Training
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import Agent

RESULTS = Path(__file__).parent / "results/polynomials.csv"
FLAGS = "--algo decision-s4 --no-video --device cpu"


def run(backbone: str, weight: float, seed: int, given: argparse.Namespace) -> list[Row]:
    """Train and play: a row a degree and target."""
    torch.set_num_threads(1)
    flags = f"{FLAGS} --backbone {backbone} --range-weight {weight} --seed {seed}"
    begun = Training.begin(
        settings([*flags.split(), "--steps", str(given.steps)]), torch.device("cpu")
    )
    while not begun.finished:
        begun.update()
    about = {
        "backbone": backbone,
        "range_weight": f"{weight:g}",
        "seed": seed,
        "updates": given.steps,
    }
    degrees = (0, *given.degrees)
    return [about | row for degree in degrees for row in played(begun, degree, given.episodes)]


def played(begun: Training, degree: int, episodes: int) -> Iterator[Row]:
    """A row a target; without a return where the polynomial leaves all numbers."""
    policy = begun.learner.averaged_policy.eval()
    about: dict[str, Any] = {"degree": degree, "whole": "", "depth": "", "most": "", "median": ""}
    agent: Agent = Actor(policy)
    if degree:
        polynomials = fit(policy, begun.trajectories, degree)
        off = errors(policy, polynomials, begun.trajectories)
        about |= {"whole": polynomials.degree, "depth": polynomials.depth}
        about |= {"most": f"{off.max():.3g}", "median": f"{off.median():.3g}"}
        agent = PolynomialAgent(policy, polynomials)
    rows: Sequence[Mapping[str, Any]]
    try:
        rows = begun.task.evaluate(agent, episodes, begun.config.seed)
    except UserError as error:
        print(error, flush=True)
        rows = [{"target_return": aim, "return_mean": ""} for aim in begun.task.target_returns]
    for row in rows:
        yield about | {name: row[name] for name in ("target_return", "return_mean")}


def fill(given: argparse.Namespace) -> None:
    """Make the runs that are missing."""
    known = {
        (row["backbone"], row["range_weight"], row["seed"]) for row in csv_rows.read(given.results)
    }
    wanted = [(b, w, s) for s in given.seeds for b in given.backbones for w in given.weights]
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        missing = [each for each in wanted if (each[0], *map("{:g}".format, each[1:])) not in known]
        for done in as_completed([pool.submit(run, *each, given) for each in missing]):
            csv_rows.append(given.results, done.result())


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown, a line a backbone, weight and degree: medians and each seed's returns."""
    targets = sorted({float(row["target_return"]) for row in rows}, reverse=True)
    asked = " | ".join(f"asked for {target:g}" for target in targets)
    yield f"| policy, penalty | degree each | the whole's, depth | off: most, median | {asked} |"
    yield "|---" * (4 + len(targets)) + "|"
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        groups.setdefault((row["backbone"], row["range_weight"], row["degree"]), []).append(row)
    for (backbone, weight, degree), own in sorted(groups.items(), key=lambda pair: _rank(pair[0])):
        returns = " | ".join(_returns(own, target) for target in targets)
        each = degree if int(degree) else "itself"
        yield f"| {backbone}, {weight} | {each} | {_sizes(own)} | {returns} |"


def _rank(names: tuple[str, ...]) -> tuple:
    backbone, weight, degree = names
    return backbone, float(weight), -int(degree) if int(degree) else -1000


def _sizes(rows: list[Row]) -> str:
    """Degree, depth and errors, whose median over seeds is told."""
    if not rows[0]["whole"]:
        return " | "
    most, median = (
        statistics.median(float(row[name]) for row in rows) for name in ("most", "median")
    )
    return f"{float(rows[0]['whole']):.1e}, {rows[0]['depth']} | {most:.2g}, {median:.2g}"


def _returns(rows: list[Row], target: float) -> str:
    own = [row["return_mean"] for row in rows if float(row["target_return"]) == target]
    return ", ".join(f"{float(mean):.0f}" if mean else "no number" for mean in own)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbones", nargs="*", default=["s4d", "power-softmax"])
    parser.add_argument("--weights", type=float, nargs="*", default=[0, 1], help="of the penalty")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--degrees", type=int, nargs="*", default=[31, 15, 7])
    parser.add_argument("--steps", type=int, default=1000, help="updates")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.processes:
        fill(given)
    print("\n".join(table(csv_rows.read(given.results))))


if __name__ == "__main__":
    main()
