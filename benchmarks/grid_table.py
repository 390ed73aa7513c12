"""The table and figures of a grid's evaluations, in rliable's definitions (Agarwal et al. 2021).

Scores are D4RL-normalised means over a run's evaluation episodes. `last` is the last evaluation,
asked for the task's first target return; `best` the best evaluation over training and targets,
which picks with the test's own episodes and so flatters. Intervals are 95% bootstrap intervals
over seeds, stratified by dataset; with fewer seeds than three they say little.
"""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from decision_s4.envs.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_resamples,
)

Rows = list[dict]
Scores = dict[str, dict[str, list[float]]]  # algorithm -> dataset -> a score a seed


def write_all(rows: Rows, folder: Path) -> None:
    """Two CSV files, table.md and two figures into `folder`; the table also to the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = runs_of(rows)
    if not runs:
        print("no run has been evaluated yet")
        return
    for name, kept in (("evaluations.csv", rows), ("scores.csv", runs)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(kept[0]))
            writer.writeheader()
            writer.writerows(kept)
    text = "\n\n".join(table(runs, which) for which in ("last", "best"))
    text += f"\n\n{comparison(runs)}\n" if len(scores_of(runs, "last")) > 1 else "\n"
    (folder / "table.md").write_text(text)
    print(text)
    draw(runs, folder)


def runs_of(rows: Rows) -> Rows:
    """One row a run: its last evaluation at the first target, and its best one."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["dataset"], row["algorithm"], row["seed"]].append(row)
    return [_summary(group) for group in groups.values()]


def _summary(rows: Rows) -> dict:
    final = max(int(row["step"]) for row in rows)
    last = next(row for row in rows if int(row["step"]) == final)
    best = max(rows, key=_score)
    kept = {name: last[name] for name in ("dataset", "algorithm", "seed", "finished", "seconds")}
    for name, row in (("last", last), ("best", best)):
        kept |= {
            name: round(_score(row), 2),
            f"{name}_step": row["step"],
            f"{name}_target": row["target_return"],
            f"{name}_return": round(float(row["return_mean"]), 1),
        }
    return kept


def _score(row: dict) -> float:
    return float(row["normalized_score"] or row["return_mean"])


def scores_of(runs: Rows, which: str) -> Scores:
    """The scores by algorithm and dataset, seeds in order."""
    scores: Scores = defaultdict(lambda: defaultdict(list))
    for run in runs:
        scores[run["algorithm"]][run["dataset"]].append(float(run[which]))
    return scores


def matrix(by_dataset: dict[str, list[float]], datasets: list[str]) -> np.ndarray | None:
    """(runs, datasets), or None unless each has as many runs."""
    lists = [by_dataset.get(name, []) for name in datasets]
    complete = lists and lists[0] and len({len(each) for each in lists}) == 1
    return np.array(lists).T if complete else None


def table(runs: Rows, which: str) -> str:
    """Datasets down, algorithms across: mean ± standard deviation over seeds, then the means."""
    scores, datasets = scores_of(runs, which), list(dict.fromkeys(run["dataset"] for run in runs))
    lines = [f"| {which} | {' | '.join(scores)} |", "|---" * (len(scores) + 1) + "|"]
    for name in datasets:
        cells = [_cell(scores[algorithm].get(name, [])) for algorithm in scores]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    whole = {algorithm: matrix(scores[algorithm], datasets) for algorithm in scores}
    for label, statistic in (("**mean**", np.mean), ("**IQM**", interquartile_mean)):
        cells = [_interval(whole[algorithm], statistic) for algorithm in scores]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values):.1f} ({len(values)})" if values else "–"


def _interval(scores: np.ndarray | None, statistic: Callable[..., Any]) -> str:
    if scores is None:
        return "–"
    each = [statistic(np.ravel(sample)) for sample in stratified_resamples(scores)]
    low, high = np.percentile(each, [2.5, 97.5])
    return f"**{statistic(np.ravel(scores)):.1f}** [{low:.1f}, {high:.1f}]"


def comparison(runs: Rows) -> str:
    """The first algorithm beside each other one: its chance to score higher (last)."""
    scores, datasets = scores_of(runs, "last"), list(dict.fromkeys(run["dataset"] for run in runs))
    first, *others = scores
    ours = matrix(scores[first], datasets)
    lines = [f"| {first} better than | probability of improvement |", "|---|---|"]
    for name in others:
        theirs = matrix(scores[name], datasets)
        if ours is None or theirs is None:
            continue
        pairs = zip(stratified_resamples(ours), stratified_resamples(theirs, seed=1), strict=True)
        each = [probability_of_improvement(*pair) for pair in pairs]
        low, high = np.percentile(each, [2.5, 97.5])
        chance = probability_of_improvement(ours, theirs)
        lines.append(f"| {name} | {chance:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


def draw(runs: Rows, folder: Path) -> None:
    """scores.png: IQM with interval. profiles.png: share of runs above each score."""
    from matplotlib.figure import Figure

    scores, datasets = scores_of(runs, "last"), list(dict.fromkeys(run["dataset"] for run in runs))
    found = {name: matrix(scores[name], datasets) for name in scores}
    whole = {name: values for name, values in found.items() if values is not None}
    bars, lines = Figure(figsize=(7, 0.5 * len(whole) + 1.2)), Figure(figsize=(7, 4))
    bar, line = bars.subplots(), lines.subplots()
    thresholds = np.linspace(0, 120, 121)
    for place, (name, values) in enumerate(whole.items()):
        resampled = (np.ravel(sample) for sample in stratified_resamples(values))
        each = np.array([interquartile_mean(sample) for sample in resampled])
        low, high = np.percentile(each, [2.5, 97.5])
        bar.barh(place, high - low, left=low, alpha=0.6)
        middle = float(interquartile_mean(np.ravel(values)))
        bar.plot([middle] * 2, [place - 0.4, place + 0.4], color="k")
        line.plot(thresholds, performance_profile(values, thresholds), label=name)
    bar.set_yticks(range(len(whole)), whole)
    bar.set_xlabel(f"interquartile mean of the last score, {len(datasets)} datasets, 95% interval")
    line.set_xlabel("score")
    line.set_ylabel("share of runs above")
    if whole:
        line.legend()
    for figure, name in ((bars, "scores.png"), (lines, "profiles.png")):
        figure.tight_layout()
        figure.savefig(folder / name, dpi=120)
