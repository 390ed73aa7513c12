"""Recurrent PPO on tasks that need memory: tasks × backbones × seeds, beside what is published.

    python benchmarks/memory_tasks.py --processes 2      train what is missing, then the table
    python benchmarks/memory_tasks.py --processes 0      only the table of what is there
    python benchmarks/memory_tasks.py --tasks TMaze-v0 --learners "s4d=--backbone s4d"
    python benchmarks/memory_tasks.py --tasks RepeatPrevious-v0 --learners every --seeds 0 1 2 \
        --flags "--steps 75000" --rows benchmarks/results/backbone_memory.csv    every backbone

Each run is one `train.py` on one thread in RUNS/<task>/<learner>/<seed>, with its task's settings
of `configs/tasks/`; finished ones are not trained again, begun ones go on from their last
checkpoint. A run counts with its last evaluation. Intervals are 95% bootstrap intervals over seeds.
"""

import argparse
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import csv_rows
import numpy as np
from d4rl import ROOT, Job, rows_of, run_here

from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.envs.statistics import bootstrap_interval


class Task(NamedTuple):
    """How a task is learned, and the mean return to beat."""

    settings: str
    """A file of configs/tasks."""
    bar: float
    source: str
    flags: str = ""
    """Beside those settings."""


ZOO = "zoo's LSTM PPO, 100k"
POPGYM = "POPGym's GRU, 4M"
EVERY = [f"{name}=--backbone {name}" for name in (*sorted(BACKBONES), *sorted(MEMORYLESS))]
TASKS = {
    "CartPoleNoVel-v1": Task("ppo-cartpole", 500.0, ZOO),
    "PendulumNoVel-v1": Task("ppo-pendulum", -218.0, ZOO),
    "RepeatPrevious-v0": Task("ppo-cards", 0.74, POPGYM),
    "RepeatFirst-v0": Task("ppo-cards", 0.81, POPGYM),
    "CountRecall-v0": Task("ppo-cards", 0.0, "half of the answers", "--steps 1000000"),
    "TMaze-v0": Task("ppo-tmaze", 0.95, "without memory: 0.5"),
}


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """The grid, seed by seed."""
    jobs = []
    for seed in given.seeds:
        for task in given.tasks:
            for learner in EVERY if given.learners == ["every"] else given.learners:
                name, _, own = learner.partition("=")
                config = ROOT / "configs/tasks" / f"{TASKS[task].settings}.yaml"
                flags = ("--config", str(config), "--env", task, "--no-video", "--device", "cpu")
                folder = (given.runs / task / name / str(seed)).absolute()
                flags = (*flags, *shlex.split(TASKS[task].flags), *shlex.split(own), *given.flags)
                jobs.append(Job(task, name, flags, seed, folder))
    return jobs


def table(jobs: list[Job]) -> str:
    """Markdown, a line for each task and learner with an evaluation."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if rows_of(job):
            groups.setdefault((job.dataset, job.label), []).append(job)
    head = "| task | on | seeds | mean [95%] | lowest | to beat | reached at | steps | minutes |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    return "\n".join(lines + [_line(*names, group) for names, group in sorted(groups.items())])


def last_rows(jobs: list[Job]) -> list[csv_rows.Row]:
    """Of each run that has an evaluation, its last one."""
    found = [(job, rows_of(job)[-1]) for job in jobs if rows_of(job)]
    return [
        {"task": job.dataset, "learner": job.label, "seed": str(job.seed)}
        | {name: row[name] for name in ("step", "return_mean")}
        for job, row in found
    ]


def joined(old: list[csv_rows.Row], new: list[csv_rows.Row]) -> list[csv_rows.Row]:
    """All rows in the order of their runs; of one run, the new one."""
    run = ("task", "learner", "seed")
    rows = {tuple(row[name] for name in run): row for row in (*old, *new)}
    return [rows[key] for key in sorted(rows)]


def _line(task: str, learner: str, jobs: list[Job]) -> str:
    runs = [[(int(r["step"]), float(r["return_mean"])) for r in rows_of(job)] for job in jobs]
    last, bar = np.array([run[-1][1] for run in runs]), TASKS[task].bar
    low, high = bootstrap_interval(last)
    reached = [next((step for step, value in run if value >= bar), None) for run in runs]
    known = [step for step in reached if step is not None]
    when = _thousands(max(known)) if len(known) == len(reached) else _count(reached)
    steps = min(run[-1][0] for run in runs)
    minutes = np.mean([float(rows_of(job)[-1]["seconds"]) for job in jobs]) / 60
    digits = 2 if abs(bar) <= 1 else 0
    figures = (last.mean(), low, high, last.min())
    mean, least, most, lowest = (f"{x:.{digits}f}" for x in figures)
    return (
        f"| {task} | {learner} | {len(runs)} | {mean} [{least}, {most}] | {lowest} | "
        f"{bar:g} ({TASKS[task].source}) | {when} | {_thousands(steps)} | {minutes:.1f} |"
    )


def _thousands(steps: int) -> str:
    return f"{steps / 1000:,.0f}k"


def _count(reached: list[int | None]) -> str:
    return f"by {sum(step is not None for step in reached)} of {len(reached)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--learners", nargs="*", default=["lru="], metavar="NAME=FLAGS, or every")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--flags", type=shlex.split, default=[], help="for every train.py")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="then stop; run again to go on")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/memory")
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--rows", type=Path, help="CSV file for each run's last return, added to")
    given = parser.parse_args()
    jobs = jobs_of(given)
    if given.processes:
        missing = [job for job in jobs if not job.done]
        run_here(missing, given.processes, time.time() + 60 * given.minutes)
    text = table(jobs) + "\n"
    print(text)
    if given.output:
        given.output.write_text(text)
    if given.rows and (rows := joined(csv_rows.read(given.rows), last_rows(jobs))):
        given.rows.unlink(missing_ok=True)
        csv_rows.append(given.rows, rows)


if __name__ == "__main__":
    main()
