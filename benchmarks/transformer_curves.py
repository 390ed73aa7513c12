"""Our Decision Transformer's learning curves beside published ones: a picture and a Markdown table.

    python benchmarks/transformers_at_once.py --rows ours.csv
    python benchmarks/transformer_curves.py ours.csv --published min_dt --picture docs/dt_curves.png

--published is a folder of logs of github.com/nikhilbarhate99/min-decision-transformer, which has
the paper's settings and D4RL's sets; ours are trained on Minari's. Scores are normalised, of the
higher return asked for, mean over three runs with the lowest and the highest.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import csv_rows
import numpy as np
from matplotlib.figure import Figure

OURS, PUBLISHED = "ours", "published"
COLOURS = {OURS: "#1f6f8b", PUBLISHED: "#d1495b"}
SHOWN = (1000, 2000, 5000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000)
ALGORITHM = "decision-transformer"


class Curves(NamedTuple):
    """Of several runs on one set."""

    updates: np.ndarray
    """(P,)"""
    scores: np.ndarray
    """(runs, P)"""


def rows_of(paths: list[Path]) -> list[csv_rows.Row]:
    return [row for path in paths for row in csv_rows.read(path) if row["algorithm"] == ALGORITHM]


def ours(paths: list[Path], dataset: str) -> Curves:
    """From what transformers_at_once.py writes: the rows of the highest return asked for."""
    rows = [row for row in rows_of(paths) if row["dataset"] == dataset]
    highest = max(float(row["target_return"]) for row in rows)
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if float(row["target_return"]) == highest:
            run = found.setdefault(row["seed"], {})
            run[round(int(row["step"]), -3)] = float(row["normalized_score"])
    updates = sorted(set.intersection(*(set(run) for run in found.values())))
    return Curves(
        np.array(updates), np.array([[run[i] for i in updates] for run in found.values()])
    )


def published(folder: Path, dataset: str, every: int) -> Curves:
    """Of their evaluations at every 100 updates, the mean over the `every` around each point."""
    runs = [csv_rows.read(path) for path in sorted(folder.glob(f"dt_{dataset}-v2_log_*.csv"))]
    updates = np.array([int(row["num_updates"]) for row in runs[0]])
    scores = np.array([[float(row["eval_d4rl_score"]) for row in run] for run in runs])
    points = np.arange(every, updates[-1] + 1, every)
    near = [abs(updates - point) <= every / 2 for point in points]
    return Curves(points, np.stack([scores[:, each].mean(1) for each in near], 1))


def draw(curves: dict[str, dict[str, Curves]]) -> Figure:
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axis, (dataset, pair) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for name, (updates, scores) in pair.items():
            low, high = scores.min(0), scores.max(0)
            axis.fill_between(updates, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
            marker = "o" if len(updates) < 10 else None
            axis.plot(updates, scores.mean(0), marker=marker, color=COLOURS[name], label=name)
        axis.set(title=dataset, xlabel="updates", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("normalised score")
    figure.axes[0].legend(frameon=False)
    return figure


def table(curves: dict[str, dict[str, Curves]]) -> str:
    head = " | ".join(f"{dataset}, {name}" for dataset, pair in curves.items() for name in pair)
    lines = [f"| updates | {head} |", "|---" * (1 + 2 * len(curves)) + "|"]
    for point in SHOWN:
        cells = [cell(found, point) for pair in curves.values() for found in pair.values()]
        lines.append(f"| {point:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(curves: Curves, point: int) -> str:
    scores = curves.scores[:, curves.updates == point]
    return f"{scores.mean():.0f} ({scores.min():.0f} – {scores.max():.0f})" if scores.size else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=Path, nargs="+", help="CSV files of transformers_at_once.py")
    parser.add_argument("--published", type=Path, required=True, help="folder of their logs")
    parser.add_argument("--picture", type=Path, help="PNG or SVG file to write")
    parser.add_argument("--every", type=int, default=1000, help="updates between points")
    given = parser.parse_args()
    datasets = dict.fromkeys(row["dataset"] for row in rows_of(given.rows))
    curves = {
        name: {
            OURS: ours(given.rows, name),
            PUBLISHED: published(given.published, name, given.every),
        }
        for name in datasets
        if any(given.published.glob(f"dt_{name}-v2_log_*.csv"))
    }
    print(table(curves))
    if given.picture:
        draw(curves).savefig(given.picture, dpi=110)


if __name__ == "__main__":
    main()
