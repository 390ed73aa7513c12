"""What each stability part of ds4-online is worth: seeds × environments × ablations, and a table.

`python benchmarks/ds4_online.py --runs FOLDER --from hopper=RUN halfcheetah=RUN` trains the grid,
one thread a run; what is finished is not trained again, what was interrupted goes on. Start is the
policy begun from, as evaluated at the end of the critics' warm-up, when it has not moved yet.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

EVERY = 10_000
BASE = (
    f"--eval-every {EVERY} --critic-warmup 10240 --no-save-replay --no-video --device cpu "
    "--threads 1"
)
ABLATIONS = {
    "all parts": "",
    "no stored states": "--no-store-states",
    "below the memory trained": "--freeze memory",
    "only A, B, dt frozen": "--freeze core",
    "recurrence trained": "--freeze nothing",
    "no logged steps": "--dataset none",
    "logged steps kept": "--replay-size 400000",
    "no warm-up": "--critic-warmup 0 --warmup-updates 0",
    "no target networks": "--target-rate 1",
    "hard copies": "--target-rate 1 --target-every 200",
    "actor rate 1e-5": "--actor-learning-rate 1e-5",
    "no gradient clip": "--gradient-clip 1e9",
    "constant noise": "--noise-final 0.1",
    "target raised": "--target-raise 0.1",
    "hindsight": "--hindsight",
    "target raised, hindsight": "--target-raise 0.1 --hindsight",
    "one critic": "--critics 1",
    "no layer norm": "--no-critic-norm",
    "no anchor": "--anchor-weight 0 --anchor-final 0",
    "looser anchor": "--anchor-weight 0.03 --anchor-final 0.03",
    "fading anchor": "--anchor-final 0.03",
    "no target noise": "--target-noise 0",
    "critics see R": "--critic-return",
    "the paper's parts alone": "--freeze memory --dataset none --critics 1 --no-critic-norm "
    "--anchor-weight 0 --anchor-final 0 --target-noise 0 --target-raise 0.1 --hindsight "
    "--critic-return --actor-every 1 --actor-learning-rate 1e-5 --warmup-updates 0",
}


def train(folder: Path, source: str, flags: str, deadline: float) -> None:
    """One run to its end, or as far as time allows; the log lies beside its folder."""
    left = deadline - time.monotonic()
    if left < 5:
        return
    command = [sys.executable, "-m", "decision_s4.train"]
    if (folder / "checkpoints").is_dir():
        command += ["--resume", str(folder)]
    else:
        command += ["--algo", "ds4-online", "--from", source, "--run-dir", str(folder)]
        command += flags.split()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=one_thread())
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            process.terminate()  # saves, and goes on next time
            process.wait(20)


def one_thread() -> dict[str, str]:
    """The environment of a run that shares the machine with others."""
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}


def curve(folder: Path, until: float) -> np.ndarray:
    """(evaluations, 2): steps up to `until` and mean returns; empty before the first."""
    path = folder / "eval.csv"
    if not path.is_file():
        return np.empty((0, 2))
    with path.open() as file:
        rows = [(float(r["step"]), float(r["return_mean"])) for r in csv.DictReader(file)]
    return np.array([row for row in rows if row[0] <= until]).reshape(-1, 2)


def row(name: str, curves: list[np.ndarray], starts: list[float]) -> str:
    """A line of the table, over the seeds that have been evaluated beyond the start."""
    kept = [(c, s) for c, s in zip(curves, starts, strict=True) if len(c) > 1]
    if not kept:
        return f"| {name} | 0 | - | - | - | - | - | - |"
    start = np.mean([s for _, s in kept])
    last = np.array([c[-3:, 1].mean() for c, _ in kept])
    gain = np.array([c[-3:, 1].mean() - s for c, s in kept])
    lowest = min(float(c[:, 1].min() / s) for c, s in kept)
    steps = int(min(c[-1, 0] for c, _ in kept))
    wide = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.nan
    best = np.mean([c[:, 1].max() for c, _ in kept])
    return (
        f"| {name} | {len(kept)} | {steps} | {start:.0f} | {last.mean():.0f} | "
        f"{gain.mean():+.0f} ± {wide:.0f} | {best:.0f} | {lowest:.0%} |"
    )


def table(
    runs: Path, environments: list[str], names: list[str], seeds: list[int], until: float
) -> str:
    """Markdown, a section an environment."""
    lines = []
    for env in environments:
        base = [curve(runs / env / slug("all parts") / str(seed), until) for seed in seeds]
        first = [float(c[0, 1]) if len(c) else np.nan for c in base]
        starts = [s if np.isfinite(s) else float(np.nanmean(first)) for s in first]
        lines += [f"\n{env}\n", "| | seeds | steps | start | last three | gain | best | lowest |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for name in names:
            curves = [curve(runs / env / slug(name) / str(seed), until) for seed in seeds]
            lines.append(row(name, curves, starts))
    return "\n".join(lines) + "\n"


def slug(name: str) -> str:
    """A name as a folder's."""
    return "".join(c if c.isalnum() else "-" for c in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--from", dest="sources", nargs="+", required=True, help="ENV=RUN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ablations", nargs="+", default=list(ABLATIONS), choices=ABLATIONS)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--until", type=float, default=np.inf, help="steps that the table counts")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    sources = dict(source.split("=", 1) for source in args.sources)
    deadline = time.monotonic() + 60 * args.minutes
    base = f"{BASE} --steps {args.steps} --eval-episodes {args.episodes}"
    with ThreadPoolExecutor(args.processes) as pool:
        for name, env, seed in product(args.ablations, sources, args.seeds):
            flags = f"{base} --seed {seed} {ABLATIONS[name]}"
            folder = args.runs / env / slug(name) / str(seed)
            pool.submit(train, folder, sources[env], flags, deadline)
    text = table(args.runs, list(sources), args.ablations, args.seeds, args.until)
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
