"""Every backbone on the embedded Hopper set: what it returns, as rows of a CSV file.

    python benchmarks/backbone_returns.py                    train what is missing, then the rows
    python benchmarks/backbone_returns.py --seeds 0          only the rows of what is there

Each run is `train.py --algo decision-s4 --backbone NAME --seed S --steps N` on one thread; finished
ones in --runs are not trained again, nor those that --results has. Returns are means over the 20
episodes of the last evaluation; `benchmarks/backbone_table.py` makes the table.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import csv_rows

from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/backbone_returns.csv"
NAMES = [*sorted(BACKBONES), *sorted(MEMORYLESS)]


def train(folder: Path, settings: str, steps: int) -> None:
    """One run, begun or gone on with, unless it is finished."""
    if any(row["step"] == str(steps) for row in evaluations(folder)):
        return
    begun = (folder / "config.yaml").exists()
    ends = ["--steps", str(steps), "--eval-every", str(steps), "--no-video"]
    flags = [*settings.split(), *ends, "--run-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "train.py", *(["--resume", str(folder)] if begun else flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(f"{folder.name}: {'done' if done.returncode == 0 else done.stderr.strip()}", flush=True)


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's eval.csv, none before there is one."""
    return csv_rows.read(folder / "eval.csv")


def rows_of(folder: Path) -> list[csv_rows.Row]:
    """Of the last evaluation of a run, one a return asked for."""
    rows, (name, _, seed) = evaluations(folder), folder.name.rpartition("-")
    return [
        {
            "backbone": name,
            "seed": seed,
            "updates": row["step"],
            "target_return": f"{float(row['target_return']):g}",
            "return_mean": f"{float(row['return_mean']):.1f}",
        }
        for row in rows
        if row["step"] == rows[-1]["step"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/backbones")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    known = {(row["backbone"], row["seed"]) for row in csv_rows.read(given.results)}
    with ThreadPoolExecutor(given.processes) as pool:
        for seed in range(given.seeds):
            for name in given.names:
                folder = given.runs / f"{name}-{seed}"
                settings = f"--algo decision-s4 --backbone {name} --seed {seed}"
                if (name, str(seed)) not in known:
                    pool.submit(train, folder, settings, given.steps)
    for folder in sorted(given.runs.glob("*-*")):
        found = rows_of(folder)
        if found and (found[0]["backbone"], found[0]["seed"]) not in known:
            csv_rows.append(given.results, found)


if __name__ == "__main__":
    main()
