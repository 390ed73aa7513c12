"""What each stability part of ds4-online is worth: a table from the evaluations of a grid.

`python benchmarks/ds4_online_table.py benchmarks/results/ds4_online.csv` prints it. A line counts
all its seeds up to the step that the shortest of them reached. Start is the policy begun from, as
`all parts` was evaluated when the critics had learned alone. A gain is the mean of the last three
evaluations less the start; what leaving something out changes is the mean gain less that of all
seeds of `all parts` at the same step, with Student's 95% interval of a difference, the deviations
pooled. A gain's own interval needs three seeds; of two both are named.
"""

import argparse
from pathlib import Path

import csv_rows
import numpy as np

WHOLE = "all parts"
COLUMNS = ("environment", "ablation", "seed", "step", "episodes", "return_mean")
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)  # of 1, 2, … degrees
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
    own = {seed: c for seed, c in own.items() if len(c) > 1 and len(whole.get(seed, ())) > 1}
    if not own:
        return f"| {name} | 0 | | | | | | |"
    until = min(c[-1, 0] for c in own.values())
    base = {seed: c for seed, c in whole.items() if len(c) > 1 and c[-1, 0] >= until}
    gained, usual = (gains(each, whole, until) for each in (own, base))
    start = np.mean([whole[seed][0, 1] for seed in own])
    lowest = min(c[c[:, 0] <= until, 1].min() / whole[s][0, 1] for s, c in own.items())
    change = difference(gained, usual) if name != WHOLE and base else ""
    head = f"| {name} | {len(own)} | {until / 1000:.0f}k | {start:.0f} | "
    last = start + gained.mean()
    return f"{head}{last:.0f} | {interval(gained)} | {change} | {lowest:.0%} |"


def gains(own: Curves, whole: Curves, until: float) -> np.ndarray:
    """(seeds,) the mean of the last three evaluations up to a step, less the seed's start."""
    kept = [(c[c[:, 0] <= until, 1], whole[seed][0, 1]) for seed, c in own.items()]
    return np.array([returns[-3:].mean() - start for returns, start in kept])


def interval(values: np.ndarray) -> str:
    """Mean ± half the width of its interval, or the values where there are too few for one."""
    if len(values) < 3:
        return ", ".join(f"{value:+.0f}" for value in values)
    wide = student(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.0f} ± {wide:.0f}"


def difference(own: np.ndarray, usual: np.ndarray) -> str:
    """Mean of `own` less that of `usual` ± half the width of its interval."""
    degrees = len(own) + len(usual) - 2
    mean = own.mean() - usual.mean()
    if degrees < 1:
        return f"{mean:+.0f}"
    pooled = (((own - own.mean()) ** 2).sum() + ((usual - usual.mean()) ** 2).sum()) / degrees
    wide = student(degrees) * (pooled * (1 / len(own) + 1 / len(usual))) ** 0.5
    return f"{mean:+.0f} ± {wide:.0f}"


def student(degrees: int) -> float:
    """The 97.5% quantile of Student's distribution; from ten degrees on that of ten."""
    return STUDENT[min(degrees, len(STUDENT)) - 1]


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
