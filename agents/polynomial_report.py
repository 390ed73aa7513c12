"""What it takes to run a policy as a polynomial, and how close it is: lines and a CSV file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from decision_s4.agents.eval_table import brief
from decision_s4.agents.policy import Policy
from decision_s4.agents.polynomial import (
    Polynomial,
    Polynomials,
    differences,
    measure,
)
from decision_s4.agents.run_dir import replace_text
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.steps import Batch
from decision_s4.envs.trajectories import Trajectories

STEPS = 4096  # of a batch that is looked at
HELD_OUT = 5  # one of so many episodes tells the errors, the others the ranges
COLUMNS = ("function", "low", "high", "reached_low", "reached_high", "worst_error")


def fit(policy: Policy, data: Trajectories, degree: int) -> Polynomials:
    """Polynomials of this degree on the ranges of logged episodes, all but every HELD_OUT-th.

    Raises:
        UserError: for a single episode.
    """
    if data.num_episodes < 2:
        raise UserError(f"{data.name} has one episode; ranges need one, and errors another")
    return Polynomials(measure(policy, _episodes(data, held_out=False)), degree)


def errors(policy: Policy, polynomials: Polynomials, data: Trajectories) -> Tensor:
    """(steps,): how far actions are off at the steps of the episodes that set no ranges."""
    return differences(policy, polynomials, _episodes(data, held_out=True))


def report(
    policy: Policy, polynomials: Polynomials, data: Trajectories, run: Path
) -> Iterator[str]:
    """Lines for a person, and RUN/polynomial.csv, of the episodes that set no ranges."""
    off = errors(policy, polynomials, data)
    yield f"polynomial of degree {polynomials.degree:,}, multiplicative depth {polynomials.depth}"
    yield (
        f"functions {len(polynomials.parts)}, of degree {polynomials.degree_each} each; actions "
        f"off by {off.max():.2g} at most, {off.median():.2g} in the median, of half their range; "
        f"by more than a tenth at {(off > 0.1).float().mean():.1%} of steps"
    )
    for part in polynomials.parts:
        reached = part.reached
        outside = reached.low < part.low or reached.high > part.high
        yield (
            f"  {part.asked.kind:10} on [{brief(part.low)}, {brief(part.high)}], reached "
            f"[{brief(reached.low)}, {brief(reached.high)}], off by {part.worst:.2g}"
            f"{' OUTSIDE' if outside else ''}"
        )
    _write(polynomials, run / "polynomial.csv")


def _write(polynomials: Polynomials, path: Path) -> None:
    """A line a function: its interval, what was reached, the largest error there."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_row, polynomials.parts))
    replace_text(path, text.getvalue())


def _row(part: Polynomial) -> tuple:
    return (part.asked.kind, part.low, part.high, part.reached.low, part.reached.high, part.worst)


def _episodes(data: Trajectories, held_out: bool) -> Iterator[Batch]:
    """Each of those held out, or of the others, once."""
    number = np.arange(data.num_episodes)
    chosen = number[((data.num_episodes - 1 - number) % HELD_OUT == 0) == held_out]
    batches = PackedBatches(data, STEPS, 0, episodes=chosen)
    while batches.position < len(batches.order):
        yield next(batches)
