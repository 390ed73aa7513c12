"""What each stability part of ds4-online is worth: a table from the evaluations of a grid.

`python benchmarks/ds4_online_table.py benchmarks/results/ds4_online.csv` prints it. A line counts
all its seeds up to the step that the shortest of them reached. Start is the policy begun from, as
`all parts` was evaluated when the critics had learned alone. A gain is the mean of the last three
evaluations less the start; what leaving something out changes is that gain less the one of `all
parts` at the same step, seed by seed. Intervals are Student's, 95%, over seeds.
"""

import argparse
from pathlib import Path

import csv_rows
import numpy as np

WHOLE = "all parts"
COLUMNS = ("environment", "ablation", "seed", "step", "episodes", "return_mean")
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # from two seeds on
Curves = dict[int, np.ndarray]  # seed -> (evaluations, 2): steps and mean returns


def gather(runs: Path) -> list[csv_rows.Row]:
    """The evaluations of RUNS/ENVIRONMENT/ABLATION/SEED, all there are."""
    rows = []
    for path in sorted(runs.glob("*/*/*/eval.csv")):
        environment, ablation, seed = path.parts[-4:-1]
        own = {"environment": environment, "ablation": ablation, "seed": seed}
        rows += [own | {name: row[name] for name in COLUMNS[3:]} for row in csv_rows.read(path)]
    return rows


def curves(rows: list[csv_rows.Row], environment: str, ablation: str) -> Curves:
    """What is there of one line of the table."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if (row["environment"], row["ablation"]) == (environment, ablation):
            point = float(row["step"]), float(row["return_mean"])
            found.setdefault(int(row["seed"]), []).append(point)
    return {seed: np.array(sorted(points)) for seed, points in sorted(found.items())}


def line(name: str, own: Curves, whole: Curves) -> str:
    """A line of the table, over the seeds that were evaluated beyond the start."""
    seeds = [s for s, c in own.items() if len(c) > 1 and len(whole.get(s, ())) > 1]
    if not seeds:
        return f"| {name} | 0 | | | | | | |"
    until = min(min(own[s][-1, 0], whole[s][-1, 0]) for s in seeds)
    starts = np.array([whole[s][0, 1] for s in seeds])
    cut, base = ([c[s][c[s][:, 0] <= until, 1] for s in seeds] for c in (own, whole))
    last, usual = (np.array([c[-3:].mean() for c in each]) for each in (cut, base))
    lowest = min(c.min() / start for c, start in zip(cut, starts, strict=True))
    change = "" if own is whole else interval(last - usual)
    head = f"| {name} | {len(seeds)} | {until / 1000:.0f}k | {starts.mean():.0f} | "
    return f"{head}{last.mean():.0f} | {interval(last - starts)} | {change} | {lowest:.0%} |"


def interval(values: np.ndarray) -> str:
    """Mean ± half the width of its interval."""
    if len(values) == 1:
        return f"{values[0]:+.0f}"
    student = STUDENT[min(len(values) - 2, len(STUDENT) - 1)]
    return f"{values.mean():+.0f} ± {student * values.std(ddof=1) / len(values) ** 0.5:.0f}"


def table(rows: list[csv_rows.Row], names: dict[str, str]) -> str:
    """Markdown, a section an environment; `names` are those of ablations by their folders."""
    lines = []
    for environment in sorted({row["environment"] for row in rows}):
        whole = curves(rows, environment, next(iter(names)))
        lines += [f"\n{environment}\n", "| | seeds | steps | start | last three | gain "]
        lines[-1] += "| against all parts | lowest evaluation |"
        lines += ["|---|---|---|---|---|---|---|---|"]
        found = {row["ablation"] for row in rows if row["environment"] == environment}
        for folder in [folder for folder in names if folder in found]:
            own = whole if folder == next(iter(names)) else curves(rows, environment, folder)
            lines.append(line(names[folder], own, whole))
    return "\n".join(lines) + "\n"


def main() -> None:
    from ds4_online import ABLATIONS, slug

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="CSV file, or a folder of runs")
    parser.add_argument("--until", type=float, default=np.inf, help="steps that the table counts")
    args = parser.parse_args()
    rows = gather(args.results) if args.results.is_dir() else csv_rows.read(args.results)
    rows = [row for row in rows if float(row["step"]) <= args.until]
    print(table(rows, {slug(name): name for name in ABLATIONS}))


if __name__ == "__main__":
    main()
