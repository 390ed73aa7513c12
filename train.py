"""Train a policy: `python train.py --algo decision-s4`, or `--algo ppo --env CartPoleNoVel-v1`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.config import (
    describe_changes,
    load_config,
    parse,
    read_setting,
    save_config,
)
from decision_s4.agents.distributed import processes
from decision_s4.agents.flags import last_value
from decision_s4.agents.form import texts_of
from decision_s4.agents.interrupt import Interrupt
from decision_s4.agents.options import RunOptions, check_ranges, choose_device
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.program import exit_code
from decision_s4.agents.run import Row, Run
from decision_s4.agents.run_dir import create_run_dir, default_run_dir
from decision_s4.envs.errors import DivergedError, SimulatorError, UserError

CONFIG_FILE = "config.yaml"
RETURN_TAG = "rollout/ep_rew_mean"
# What a checkpoint fixes: another value would be ignored, or would make it another policy.
FIXED = {
    "algo",
    "seed",
    "sampling",
    "weight_decay",
    "data_fraction",
    "value_weight",
    "critic_width",
    "relabel_rounds",
    "relabel_steps",
    "distill_from",
    *(f.name for f in dataclasses.fields(PolicyOptions)),
}


def train(config: RunOptions) -> Path | None:
    """Run to the end; returns the run's folder.

    Raises UserError for bad input, KeyboardInterrupt once an interrupted run is saved.
    """
    check_ranges(config)
    device = choose_device(config.device)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    before = load_config(type(config), config.resume / CONFIG_FILE) if config.resume else None
    run = algorithm_of(config.algo).begin(config, device)
    if run.world.size != processes():
        raise UserError(f"--algo {config.algo} trains in one process; start it without torchrun")
    try:
        folder = _work(run, before)
    except KeyboardInterrupt:  # all processes stopped at the same step
        run.world.leave()
        raise
    run.world.leave()
    return folder


def _work(run: Run, before: RunOptions | None) -> Path | None:
    """What this process does of the run; `before` are the settings of a run to resume."""
    if not run.world.leads:
        return _accompany(run)
    return _begin(run) if before is None else _resume(run, before)


def _accompany(run: Run) -> Path | None:
    """Train beside the process that logs and saves; returns the folder of a resumed run."""
    if run.config.resume:
        run.restore(run.config.resume)
    with Interrupt() as interrupt:
        while not run.finished and not run.world.any(interrupt.asked):
            run.update()
    return run.config.resume


def _begin(run: Run) -> Path:
    config = run.config
    run_dir = create_run_dir(
        config.run_dir or default_run_dir(config.algo, config.subject, config.seed)
    )
    try:
        _save_config(config, run_dir)
        _record(run, run_dir)
    except Exception:
        if not any((run_dir / "checkpoints").glob("[0-9]*")):
            shutil.rmtree(run_dir)  # nothing to go on with, and a retry finds its folder free
        raise
    return run_dir


def _resume(run: Run, before: RunOptions) -> Path:
    run_dir, steps = run.config.resume, run.config.steps
    run.restore(run_dir)
    if run.finished:
        print(f"{run_dir} is finished: step {run.step} of {steps}; train on with more --steps")
        return run_dir
    changes = describe_changes(before, _portable(run.config))
    _save_config(run.config, run_dir)
    _record(run, run_dir, [f"resumed at step {run.step}", *(f"changed {c}" for c in changes)])
    return run_dir


def _record(run: Run, run_dir: Path, notes: Sequence[str] = ()) -> None:
    """Train, evaluate, save and film, with everything logged."""
    from decision_s4.agents.logger import Logger  # slow to import: not before flags are checked

    config = run.config
    with Logger(run_dir, config.steps, config, step=run.step) as logger:
        for line in [*_introduction(run, run_dir), *notes]:
            logger.message(line)
        with Interrupt() as interrupt:
            try:
                _loop(run, logger, run_dir, interrupt)
            except (SimulatorError, DivergedError) as error:
                raise type(error)(f"{error}; {_what_is_kept(run_dir)}") from error
        if interrupt.asked:
            if not run.finished:
                logger.message(f"stopped at step {run.step}; go on with --resume {run_dir}")
            raise KeyboardInterrupt
        if config.video:
            run.draw(logger, run_dir)


def _what_is_kept(run_dir: Path) -> str:
    if not any((run_dir / "checkpoints").glob("[0-9]*")):
        return "no checkpoint had been written"
    return f"go on from the last checkpoint with --resume {run_dir}"


def _loop(run: Run, logger: Any, run_dir: Path, interrupt: Interrupt) -> None:
    config, metrics, timesteps, since = run.config, {}, 0, time.perf_counter()
    while not run.finished and not run.world.any(interrupt.asked):
        before = run.step
        metrics, taken = run.update()
        timesteps += taken
        evaluates = _passed(before, run, config.eval_every)
        if not evaluates and not _passed(before, run, config.log_every):
            continue
        shown = _log(run, logger, metrics, timesteps / (time.perf_counter() - since))
        if evaluates:
            rows = run.evaluate()
            logger.evaluation(run.step, rows)
            run.explain(logger)
            run.save(run_dir, _score(rows))
            shown |= _shown_score(rows)
        logger.progress(run.step, **shown)
        timesteps, since = 0, time.perf_counter()
    if not run.finished:
        _check_finite(run, metrics)
        logger.flush()
        run.save(run_dir)


def _passed(before: int, run: Run, every: int) -> bool:
    """Whether the last update ended the run, or reached or passed a multiple of `every`."""
    return run.finished or run.step // every > before // every


def _log(
    run: Run, logger: Any, metrics: Mapping[str, torch.Tensor], rate: float
) -> dict[str, float]:
    """Write a point of the curves; returns what of it the progress shows."""
    _check_finite(run, metrics)
    values = {
        name if "/" in name else f"train/{name}": value.item() for name, value in metrics.items()
    }
    values["train/learning_rate"] = run.learning_rate
    logger.log(run.step, values | {run.rate_tag: rate})
    shown = {"loss": values.get("train/loss"), "timesteps/s": round(rate)}
    shown["return"] = values.get(RETURN_TAG)
    return {name: value for name, value in shown.items() if value is not None}


def _check_finite(run: Run, metrics: Mapping[str, torch.Tensor]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged: {name} is {value.item()} at step {run.step}; "
                f"lower --learning-rate {run.config.learning_rate:g}"
            )


def _score(rows: list[Row]) -> float | None:
    """What "best" means: the mean return of the first target; None without evaluation."""
    return rows[0]["return_mean"] if rows else None


def _shown_score(rows: list[Row]) -> dict[str, float]:
    """The first target's score, or its return where there is no scale."""
    if not rows:
        return {}
    score = rows[0]["normalized_score"]
    return {"return": rows[0]["return_mean"]} if score is None else {"score": score}


def _introduction(run: Run, run_dir: Path) -> list[str]:
    return [
        *run.introduction(),
        f"run     {run_dir}",
        f"watch   tensorboard --logdir {run_dir}",
    ]


def _portable(config: RunOptions) -> RunOptions:
    """The settings without the folder: it may move, and others may train with the same ones."""
    return dataclasses.replace(config, run_dir=None, resume=None)


def _save_config(config: RunOptions, run_dir: Path) -> None:
    save_config(_portable(config), run_dir / CONFIG_FILE)


def settings(argv: Sequence[str]) -> RunOptions:
    """The settings that the command line asks for; those of a resumed run lie below its flags.

    Raises UserError for bad flags, and for those that a resumed run cannot take.
    """
    resume = last_value(argv, "resume")
    if resume in (None, "None"):
        return parse(_config_class(argv), argv, description=__doc__, notes=_notes(argv))
    path = Path(resume) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {resume}: no {CONFIG_FILE} there; give a run's folder")
    before = _before(path)
    config = parse(type(before), argv, defaults=vars(before), description=__doc__)
    if config.run_dir:
        raise UserError(f"--run-dir {config.run_dir} with --resume: give only one of the two")
    for name in sorted((FIXED | before.fixed) & vars(before).keys()):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise UserError(f"--resume: {name} is {old}, not {new}, in {path}; start a new run")
    return config


def _config_class(argv: Sequence[str]) -> type[RunOptions]:
    """The dataclass of the algorithm that the flags, or else the file of --config, name."""
    algo, file = last_value(argv, "algo"), last_value(argv, "config")
    if algo is None and file is not None:
        algo = read_setting(Path(file), "algo")
    return algorithm_of(RunOptions.algo if algo is None else algo).config


def _notes(argv: Sequence[str]) -> dict[str, str]:
    """What --help says besides: the options of the backbone that the flags name."""
    name = last_value(argv, "backbone")
    if name not in BACKBONES | MEMORYLESS:
        return {}
    form = (BACKBONES | MEMORYLESS)[name].Options
    texts = texts_of(form)
    options = [
        f"{field.name}={field.default} ({texts.get(field.name, '').rstrip('.')})"
        for field in dataclasses.fields(form)
    ]
    return {"backbone_options": f"{name} takes " + ", ".join(options).replace(" ()", "") + "."}


def _before(path: Path) -> RunOptions:
    """The settings of the run whose file this is."""
    algo = read_setting(path, "algo")
    return load_config(algorithm_of(RunOptions.algo if algo is None else algo).config, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 interrupted, 141 unread."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_code("train.py", lambda: train(settings(argv)))


if __name__ == "__main__":
    sys.exit(main())
