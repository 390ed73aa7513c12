"""Learning curves as a picture, from TensorBoard logs.

    python docs/curves.py docs/memory.png lru=runs/ppo/a,runs/ppo/b gru=runs/ppo/c
    python docs/curves.py docs/loss.png s4=runs/decision-s4/x --tag train/loss

A line for each name: the mean over its runs (seeds, say), each interpolated between its points, and
a band from the lowest run to the highest. The logs may be those of any program; a run's eval.csv
serves as well.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = {"eval/return_mean": "mean return", "rollout/ep_rew_mean": "return of episodes in training"}
DASHES = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)))
COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#5c5c5c")


def read(run: Path, tag: str) -> np.ndarray:
    """(2, points): steps and values of a run's curve. Exits where it has none."""
    if run.suffix == ".csv":
        return read_csv(run, tag.removeprefix("eval/"))
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    known = events.Tags()["scalars"]
    if tag not in known:
        sys.exit(f"{run}: no curve '{tag}'; it has {', '.join(known) or 'none'}; choose by --tag")
    points = sorted((event.step, event.value) for event in events.Scalars(tag))
    return np.array(points, float).T


def read_csv(file: Path, column: str) -> np.ndarray:
    """(2, points): steps and values of a column. Exits where there is none."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    if not rows or column not in rows[0]:
        sys.exit(f"{file}: no column '{column}', or no line; choose by --tag eval/NAME")
    return np.array([(float(row["step"]), float(row[column])) for row in rows]).T


def over_runs(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (S,) that all runs reach, and their values (runs, S) there."""
    last = min(steps[-1] for steps, _ in curves)
    first = max(steps[0] for steps, _ in curves)
    every = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = every[(every >= first) & (every <= last)]
    return steps, np.array([np.interp(steps, *curve) for curve in curves])


def draw(groups: dict[str, list[Path]], tag: str, line: float | None, unit: str) -> Figure:
    """The picture; a dashed line at the value to reach."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (name, runs) in enumerate(groups.items()):
        steps, values = over_runs([read(run, tag) for run in runs])
        colour, count = COLOURS[i % len(COLOURS)], f" ({len(runs)} runs)" if runs[1:] else ""
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        style = {"color": colour, "linestyle": DASHES[i % len(DASHES)], "linewidth": 2}
        axis.plot(steps, values.mean(0), **style, label=name + count)
    if line is not None:
        axis.axhline(line, color="0.5", linewidth=1, linestyle=(0, (4, 4)))
    axis.set(xlabel=unit, ylabel=NAMES.get(tag, tag))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def group(text: str) -> tuple[str, list[Path]]:
    """`name=RUN,RUN` as a name and folders."""
    name, equals, runs = text.partition("=")
    if not (name and equals and runs):
        raise argparse.ArgumentTypeError(f"'{text}' is not name=RUN or name=RUN,RUN")
    return name, [Path(run) for run in runs.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="PNG or SVG file to write")
    parser.add_argument("groups", type=group, nargs="+", metavar="NAME=RUN,RUN")
    parser.add_argument("--tag", default="eval/return_mean", help="the curve")
    parser.add_argument("--line", type=float, help="a value to mark")
    parser.add_argument("--unit", default="environment steps", help="what steps count")
    args = parser.parse_args(argv)
    draw(dict(args.groups), args.tag, args.line, args.unit).savefig(args.picture, dpi=130)


if __name__ == "__main__":
    main()
