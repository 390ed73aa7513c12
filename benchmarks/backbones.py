"""Every backbone on the embedded Hopper set: returns, size and speed, as a Markdown table.

    python benchmarks/backbones.py                    train what is missing, then print the table
    python benchmarks/backbones.py --seeds 0 --names  only the table of what is there

Each run is `train.py --algo decision-s4 --backbone NAME --seed S --steps N` on one thread; finished
ones in --runs are not trained again. Returns are means of the last evaluation, over seeds and 20
episodes, with each seed's beside. Speeds are medians of interleaved repeats.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from acting import stepper
from timing import interleaved

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions, SequencePolicy, parameter_count
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.datasets import load

ROOT = Path(__file__).parents[1]
NAMES = [*sorted(BACKBONES), *sorted(MEMORYLESS)]


def train(folder: Path, name: str, seed: int, steps: int) -> None:
    """One run, unless it is there."""
    if (folder / "eval.csv").exists():
        return
    command = f"train.py --algo decision-s4 --backbone {name} --seed {seed} --steps {steps}"
    flags = f"--eval-every {steps} --threads 1 --no-video --run-dir"
    done = subprocess.run(
        [sys.executable, *command.split(), *flags.split(), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(f"{folder.name}: {'done' if done.returncode == 0 else done.stderr.strip()}", flush=True)


def returns(runs: Path, name: str) -> dict[float, list[float]]:
    """Mean return of each seed's last evaluation, by target."""
    found: dict[float, list[float]] = {}
    for path in sorted(runs.glob(f"{name}-*/eval.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if row["step"] == rows[-1]["step"]:
                found.setdefault(float(row["target_return"]), []).append(float(row["return_mean"]))
    return found


def speeds() -> dict[str, tuple[int, float, float]]:
    """Parameters, ms of an update of 1,000 steps, µs of an acting step, by backbone; one thread."""
    torch.set_num_threads(1)
    data = load("hopper-mixed")
    batch = next(PackedBatches(data, 1000, seed=0))
    updates: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], object]] = {}
    sizes = {}
    for name in NAMES:
        policy = SequencePolicy(data.observation_space, data.action_space, PolicyOptions(name))
        sizes[name] = parameter_count(policy)
        steps[name] = stepper(Actor(policy.eval()), 1)
        learner = DecisionLearner(policy, OptimiserOptions(), 1000)
        updates[name] = lambda learner=learner: learner.update(batch)
    update, step = interleaved(updates, 15), interleaved(steps, 300)
    return {
        name: (sizes[name], 1e3 * float(median(update[name])), 1e6 * float(median(step[name])))
        for name in NAMES
    }


def median(seconds: object) -> torch.Tensor:
    return torch.as_tensor(seconds).median()


def table(runs: Path) -> None:
    """Best first."""
    found = {name: returns(runs, name) for name in NAMES}
    found = {name: by_target for name, by_target in found.items() if by_target}
    targets = sorted({t for by_target in found.values() for t in by_target}, reverse=True)
    speed = speeds()
    asked = " | ".join(f"asked for {target:g}" for target in targets)
    print(f"| backbone | {asked} | parameters | update, ms | acting step, µs |")
    print("|---" * (len(targets) + 4) + "|")
    for name in sorted(found, key=lambda n: -sum(found[n][targets[0]]) / len(found[n][targets[0]])):
        cells = [_cell(found[name][target]) for target in targets]
        size, update, step = speed[name]
        print(f"| {name} | {' | '.join(cells)} | {size:,} | {update:.0f} | {step:.0f} |")


def _cell(means: list[float]) -> str:
    each = ", ".join(f"{mean:.0f}" for mean in means)
    return f"**{sum(means) / len(means):.0f}** ({each})"


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
                pool.submit(train, folder, name, seed, given.steps)
    table(given.runs)


if __name__ == "__main__":
    main()
