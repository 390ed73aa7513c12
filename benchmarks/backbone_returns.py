"""Every backbone on the embedded Hopper set: what it returns, as a Markdown table, best first.

    python benchmarks/backbone_returns.py                    train what is missing, then the table
    python benchmarks/backbone_returns.py --seeds 0          only the table of what is there

Each run is `train.py --algo decision-s4 --backbone NAME --seed S --steps N` on one thread; finished
ones in --runs are not trained again. Returns are means of the last evaluation over seeds and 20
episodes, with the 95% bootstrap interval of the mean over seeds, and each seed's own.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import csv_rows
import numpy as np

from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.envs.statistics import bootstrap_interval

ROOT = Path(__file__).parents[1]
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


def returns(runs: Path, name: str) -> dict[float, list[float]]:
    """Mean return of each seed's last evaluation, by target."""
    found: dict[float, list[float]] = {}
    for folder in sorted(runs.glob(f"{name}-*")):
        rows = evaluations(folder)
        for row in rows:
            if row["step"] == rows[-1]["step"]:
                found.setdefault(float(row["target_return"]), []).append(float(row["return_mean"]))
    return found


def table(runs: Path, names: list[str]) -> None:
    """Best first."""
    found = {name: returns(runs, name) for name in names}
    found = {name: by_target for name, by_target in found.items() if by_target}
    targets = sorted({target for each in found.values() for target in each}, reverse=True)
    print(f"| backbone | {' | '.join(f'asked for {target:g}' for target in targets)} |")
    print("|---" * (len(targets) + 1) + "|")
    for name in sorted(found, key=lambda name: -np.mean(found[name][targets[0]])):
        cells = [cell(found[name][target]) for target in targets]
        print(f"| {name} | {' | '.join(cells)} |")


def cell(means: list[float]) -> str:
    low, high = bootstrap_interval(np.array(means))
    each = ", ".join(f"{mean:.0f}" for mean in means)
    return f"**{np.mean(means):.0f}** [{low:.0f}, {high:.0f}] ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/backbones")
    given = parser.parse_args()
    with ThreadPoolExecutor(given.processes) as pool:
        for seed in range(given.seeds):
            for name in given.names:
                folder = given.runs / f"{name}-{seed}"
                settings = f"--algo decision-s4 --backbone {name} --seed {seed}"
                pool.submit(train, folder, settings, given.steps)
    table(given.runs, given.names)


if __name__ == "__main__":
    main()
