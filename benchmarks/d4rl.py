"""Datasets × algorithms × seeds: trained over processes, resumable, one table and its figures.

    python benchmarks/d4rl.py --processes 2                  train what is missing, then the table
    python benchmarks/d4rl.py --processes 0                  only the table of what is there
    python benchmarks/d4rl.py --launcher ray --processes 64  the same, over a Ray cluster
    python benchmarks/d4rl.py --launcher together            in turns in one process on a GPU
    python benchmarks/d4rl.py --source d4rl                  D4RL's own files, downloaded

An algorithm is a name that `train.py --algo` knows, or `label=name --flag value …` for one with
other settings. Each run is one `train.py` on one thread in RUNS/<dataset>/<label>/<seed>; finished
ones are not trained again, begun ones go on from their last checkpoint. Written to --output:
evaluations.csv (all of them), scores.csv (one row a run), table.md (benchmarks/grid_table.py says
what its numbers are), scores.png and profiles.png.
"""

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decision_s4

ROOT = Path(decision_s4.__file__).parent
LOCOMOTION = f"--config {shlex.quote(str(ROOT / 'configs/tasks/locomotion.yaml'))}"
ALGORITHMS = (
    *(f"{name}={name} {LOCOMOTION}" for name in ("decision-s4", "bc", "10%-bc")),
    *("decision-transformer", "td3-bc", "iql"),
)
ROBOTS, QUALITIES = (
    ("halfcheetah", "hopper", "walker2d"),
    ("medium", "medium-replay", "medium-expert"),
)
DATASETS = tuple(f"{robot}-{quality}" for quality in QUALITIES for robot in ROBOTS)
LOG, TIMES = "log.txt", "seconds.json"


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    dataset: str
    label: str
    flags: tuple[str, ...]
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it has trained to its end."""
        return _seconds(self.folder).get("finished", False)

    def command(self) -> list[str]:
        """What trains it, from where it stands."""
        program = [sys.executable, "-m", "decision_s4.train"]
        if (self.folder / "config.yaml").exists():
            return [*program, "--resume", str(self.folder)]
        return [*program, *self.flags, "--seed", str(self.seed), "--run-dir", str(self.folder)]

    def run(self, seconds: float) -> str:
        """Train for at most `seconds`; a run that is cut there saves itself. One line about it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begin, before = time.monotonic(), _seconds(self.folder).get("seconds", 0.0)
        code = _call(self.command(), self.folder, seconds)
        spent = {"seconds": before + time.monotonic() - begin, "finished": code == 0}
        (self.folder / TIMES).write_text(json.dumps(spent))
        state = {0: "done", 130: "cut, goes on next time"}.get(code, _last_line(self.folder))
        return f"{self.folder}: {state} ({spent['seconds']:.0f} s)"


def _call(command: list[str], folder: Path, seconds: float) -> int:
    """The exit code of a training whose output goes to the file beside its folder's others."""
    log = folder.with_name(f"{folder.name}.{LOG}")
    if not (folder / "config.yaml").exists():
        (folder / TIMES).unlink(missing_ok=True)  # train.py wants the folder of a new run empty
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=alone, cwd=folder.parent)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            return process.wait(60)


def _seconds(folder: Path) -> dict:
    path = folder / TIMES
    return json.loads(path.read_text()) if path.exists() else {}


def _last_line(folder: Path) -> str:
    lines = folder.with_name(f"{folder.name}.{LOG}").read_text().strip().splitlines()
    return lines[-1] if lines else "failed"


def names_of(dataset: str, source: str, root: str) -> str:
    """What --dataset takes: D4RL's id, or Minari's ids under `root`, two for medium-expert."""
    if source == "d4rl":
        return f"{dataset}-v2"
    robot, _, quality = dataset.partition("-")
    parts = ("medium", "expert") if quality == "medium-expert" else (quality,)
    return ",".join(f"{root}/{robot}/{part}-v0" for part in parts)


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """The whole grid: seed by seed, so that an interrupted one has all its rows early."""
    jobs = []
    for seed in given.seeds:
        for dataset in given.datasets:
            for spec in given.algorithms:
                match = re.fullmatch(r"(?:([\w%.+-]+)=)?(.*)", spec)
                label, words = match.groups() if match else (None, spec)
                algo, *own = shlex.split(words)
                data = names_of(dataset, given.source, given.root)
                flags = ("--algo", algo, "--dataset", data, "--no-video", *given.flags, *own)
                folder = given.runs / dataset / (label or algo) / str(seed)
                jobs.append(Job(dataset, label or algo, flags, seed, folder.absolute()))
    return jobs


def run_here(jobs: Iterable[Job], processes: int, deadline: float) -> None:
    """`processes` trainings at a time on this machine."""
    with ThreadPoolExecutor(max(1, processes)) as pool:
        for line in pool.map(lambda job: _until(job, deadline), jobs):
            if line:
                print(line, flush=True)


def run_on_ray(jobs: Iterable[Job], processes: int, deadline: float) -> None:
    """At most `processes` at a time over a Ray cluster whose machines share the file system."""
    import ray

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(num_cpus=1)(_until)
    waiting = list(jobs)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(task.remote(waiting.pop(0), deadline))
        done, running = ray.wait(running)
        for line in filter(None, ray.get(done)):
            print(line, flush=True)


def run_side_by_side(jobs: Iterable[Job], processes: int, deadline: float) -> None:
    """In one process on a GPU, evaluations over `processes`."""
    from together import run_together  # beside this file

    run_together(jobs, processes, deadline)


LAUNCHERS: dict[str, Callable[[Iterable[Job], int, float], None]] = {
    "local": run_here,
    "ray": run_on_ray,
    "together": run_side_by_side,
}


def _until(job: Job, deadline: float) -> str | None:
    left = deadline - time.time()
    return job.run(left) if left > 0 else None


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The evaluations of a run, each with what the table needs to know of it."""
    path = job.folder / "eval.csv"
    if not path.exists():
        return []
    about: dict[str, Any] = {"dataset": job.dataset, "algorithm": job.label, "seed": job.seed}
    about |= {"seconds": round(_seconds(job.folder).get("seconds", 0)), "finished": job.done}
    return [about | row for row in _read(path)]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="*", default=DATASETS, metavar="NAME")
    parser.add_argument("--algorithms", nargs="*", default=ALGORITHMS, metavar="SPEC")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--flags", type=shlex.split, default=[], help="for every train.py")
    parser.add_argument("--source", choices=["minari", "d4rl"], default="minari")
    parser.add_argument("--root", default="gym", help="Minari ids begin with this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--launcher", choices=sorted(LAUNCHERS), default="local")
    parser.add_argument("--minutes", type=float, default=1e6, help="then stop; run again to go on")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/d4rl")
    parser.add_argument("--add", nargs="*", type=Path, default=[], help="evaluations.csv of others")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/d4rl")
    return parser.parse_args()


def main() -> None:
    given = read_arguments()
    jobs = jobs_of(given)
    if given.processes:
        missing = [job for job in jobs if not job.done]
        LAUNCHERS[given.launcher](missing, given.processes, time.time() + 60 * given.minutes)
    from grid_table import write_all  # beside this file

    rows = [row for job in jobs for row in rows_of(job)]
    write_all(rows + [row for path in given.add for row in _read(path)], given.output)


if __name__ == "__main__":
    main()
