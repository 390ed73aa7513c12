"""What each stability part of ds4-online is worth: seeds × environments × ablations, and a table.

`python benchmarks/ds4_online.py --runs FOLDER --from hopper=RUN halfcheetah=RUN` trains the grid,
one thread a run; what is finished is not trained again, what was interrupted goes on. The table is
that of ds4_online_table.py; `--results` also keeps what it is made of.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import csv_rows
from ds4_online_table import gather, table

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
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """It saves, and goes on next time; the critics' warm-up, a minute long, is not waited for."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def one_thread() -> dict[str, str]:
    """The environment of a run that shares the machine with others."""
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}


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
    parser.add_argument("--results", type=Path, help="CSV file to write all evaluations to")
    args = parser.parse_args()
    sources = dict(source.split("=", 1) for source in args.sources)
    deadline = time.monotonic() + 60 * args.minutes
    base = f"{BASE} --steps {args.steps} --eval-episodes {args.episodes}"
    with ThreadPoolExecutor(args.processes) as pool:
        for name, env, seed in product(args.ablations, sources, args.seeds):
            flags = f"{base} --seed {seed} {ABLATIONS[name]}"
            folder = args.runs / env / slug(name) / str(seed)
            pool.submit(train, folder, sources[env], flags, deadline)
    rows = gather(args.runs)
    if args.results and rows:
        args.results.unlink(missing_ok=True)
        csv_rows.append(args.results, rows)
    print(table(rows, {slug(name): name for name in ABLATIONS}))


if __name__ == "__main__":
    main()
