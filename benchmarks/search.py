"""Search settings with Optuna: any fields of an algorithm's settings, on any dataset.

    python benchmarks/search.py --dataset gym/hopper/medium-replay-v0 --trials 20 \\
        --space learning_rate=log:3e-4:4e-3 dropout=float:0:0.3 d_model=choice:64,96 \\
        --flags '--mlp-ratio 2 --steps 2000'

A trial is one `train.py` and its worth the score of its last evaluation at the first target (the
return where there is no scale). Trials are kept in RUNS/STUDY.db: the same command goes on, and
several at once, on machines that share the file, search together. A trial worse than half of the
others at the same step is stopped. Needs the extra `search`.
"""

import argparse
import csv
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

try:
    import optuna
except ImportError:
    sys.exit("search.py needs optuna: pip install -e '.[search]'")


SPACE = "name=int:1:4, name=float:0:1, name=log:1e-4:1e-2 or name=choice:a,b"


def suggest(trial: optuna.Trial, spec: str) -> tuple[str, object]:
    """The field and a value of `name=kind:…`: int:1:4, float:0:0.3, log:1e-4:1e-2, choice:a,b."""
    name, _, rest = spec.partition("=")
    kind, _, bounds = rest.partition(":")
    if kind == "choice":
        return name, trial.suggest_categorical(name, bounds.split(","))
    low, _, high = bounds.partition(":")
    try:
        if kind == "int":
            return name, trial.suggest_int(name, int(low), int(high))
        if kind in ("float", "log"):
            value = trial.suggest_float(name, float(low), float(high), log=kind == "log")
            return name, float(f"{value:.4g}")  # as a person would write it
    except ValueError:  # no numbers, or in the wrong order
        pass
    raise SystemExit(f"--space {spec}: write {SPACE}")


def flags_of(trial: optuna.Trial, space: list[str]) -> list[str]:
    """A trial's values as flags of train.py."""
    pairs = [suggest(trial, spec) for spec in space]
    return [word for name, value in pairs for word in (f"--{name.replace('_', '-')}", str(value))]


def worth(rows: list[dict[str, str]]) -> tuple[int, float]:
    """(step, score) of the last evaluation at the first target."""
    step = int(rows[-1]["step"])
    first = next(row for row in rows if int(row["step"]) == step)
    return step, float(first["normalized_score"] or first["return_mean"])


def evaluations(folder: Path) -> list[dict[str, str]]:
    path = folder / "eval.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def run_trial(trial: optuna.Trial, given: argparse.Namespace) -> float:
    """Train, report each evaluation, and stop where others were better by then."""
    folder = given.runs / given.study / str(trial.number)
    chosen = flags_of(trial, given.space)
    command = [sys.executable, "-m", "decision_s4.train", "--dataset", given.dataset, "--no-video"]
    command += ["--algo", given.algo, *given.flags, *chosen, "--run-dir", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seen = 0
    while process.poll() is None:
        time.sleep(0.5)
        rows = evaluations(folder)
        if rows and (step := worth(rows)[0]) > seen:
            seen = step
            trial.report(worth(rows)[1], step)
            if trial.should_prune():
                process.send_signal(signal.SIGINT)
                process.wait()
                raise optuna.TrialPruned
    if process.returncode and process.stderr:
        raise SystemExit(process.stderr.read().strip().splitlines()[-1])
    return worth(evaluations(folder))[1]


def conclusion(study: optuna.Study, given: argparse.Namespace) -> list[str]:
    """The best trial, where it lies, and how to see whether it was luck."""
    best = study.best_trial
    fixed = flags_of(optuna.trial.FixedTrial(best.params), given.space)
    base = ["python", "train.py", "--dataset", given.dataset, "--algo", given.algo]
    folder = given.runs / given.study / str(best.number)
    return [
        f"{len(study.trials)} trials; best {study.best_value:.4g} (trial {best.number})",
        f"found   {' '.join(fixed)}",
        f"run     {folder}",
        "        the best of many trials is lucky, too; with another seed:",
        f"next    {shlex.join([*base, *given.flags, *fixed, '--seed', '1'])}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", required=True, help="as train.py takes it")
    parser.add_argument("--algo", default="decision-s4")
    parser.add_argument("--space", nargs="+", required=True, metavar="NAME=KIND:…", help=SPACE)
    parser.add_argument("--flags", type=shlex.split, default=[], help="for every train.py")
    parser.add_argument("--trials", type=int, default=20, help="of this call; default 20")
    parser.add_argument("--study", default="search", help="name; an old one's goes on")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all studies")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=given.study,
        storage=f"sqlite:///{given.runs / given.study}.db",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(),
    )
    study.optimize(lambda trial: run_trial(trial, given), n_trials=given.trials)
    print(*conclusion(study, given), sep="\n")


if __name__ == "__main__":
    main()
