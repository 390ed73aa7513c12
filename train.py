"""Train a policy from logged trajectories: `python train.py --algo decision-s4`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from decision_s4.agents.actor import Actor
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import (
    describe_changes,
    load_config,
    parse,
    read_setting,
    save_config,
)
from decision_s4.agents.distributed import join
from decision_s4.agents.flags import last_value
from decision_s4.agents.interrupt import Interrupt
from decision_s4.agents.options import RunOptions, check_ranges, choose_device
from decision_s4.agents.policy import PolicyOptions, parameter_count
from decision_s4.agents.program import exit_code
from decision_s4.agents.run_dir import create_run_dir, default_run_dir
from decision_s4.agents.training import Row, Training
from decision_s4.envs import datasets
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import task_of

CONFIG_FILE = "config.yaml"
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
    trajectories = datasets.load(config.dataset)
    task = task_of(trajectories, config.env, config.target_returns, config.reference_scores)
    run = algorithm_of(config.algo).run(config, trajectories, task, device, join(device))
    if not run.world.leads:
        return _accompany(run)
    _probes(run)
    return _begin(run) if before is None else _resume(run, before)


def _accompany(run: Training) -> Path | None:
    """Train beside the process that logs and saves; returns the folder of a resumed run."""
    if run.config.resume:
        run.restore(run.config.resume)
    with Interrupt() as interrupt:
        while not run.finished and not run.world.any(interrupt.asked):
            run.update()
    return run.config.resume


def _begin(run: Training) -> Path:
    config = run.config
    run_dir = create_run_dir(
        config.run_dir or default_run_dir(config.algo, config.dataset, config.seed)
    )
    try:
        _save_config(config, run_dir)
        _record(run, run_dir)
    except Exception:
        if not any((run_dir / "checkpoints").glob("[0-9]*")):
            shutil.rmtree(run_dir)  # nothing to go on with, and a retry finds its folder free
        raise
    return run_dir


def _resume(run: Training, before: RunOptions) -> Path:
    run_dir, steps = run.config.resume, run.config.steps
    run.restore(run_dir)
    if run.finished:
        print(f"{run_dir} is finished: step {run.step} of {steps}; train on with more --steps")
        return run_dir
    changes = describe_changes(before, _portable(run.config))
    _save_config(run.config, run_dir)
    _record(run, run_dir, [f"resumed at step {run.step}", *(f"changed {c}" for c in changes)])
    return run_dir


def _record(run: Training, run_dir: Path, notes: Sequence[str] = ()) -> None:
    """Train, evaluate, save and film, with everything logged."""
    from decision_s4.agents.logger import Logger  # slow to import: not before flags are checked

    config = run.config
    with Logger(run_dir, config.steps, config, step=run.step) as logger:
        for line in [*_introduction(run, run_dir), *notes]:
            logger.message(line)
        with Interrupt() as interrupt:
            _loop(run, logger, run_dir, interrupt)
        if interrupt.asked:
            if not run.finished:
                logger.message(f"stopped at step {run.step}; go on with --resume {run_dir}")
            raise KeyboardInterrupt
        if config.video:
            _draw(run, logger, run_dir)


def _loop(run: Training, logger: Any, run_dir: Path, interrupt: Interrupt) -> None:
    config, metrics, timesteps, since = run.config, {}, 0, time.perf_counter()
    probes = _probes(run)
    while not run.finished and not run.world.any(interrupt.asked):
        metrics, taken = run.update()
        timesteps += taken
        evaluates = run.finished or run.step % config.eval_every == 0
        if not evaluates and run.step % config.log_every:
            continue
        shown = _log(run, logger, metrics, timesteps / (time.perf_counter() - since))
        if evaluates:
            rows = run.evaluate()
            logger.evaluation(run.step, rows)
            if probes:
                _explain(run, logger, probes)
            run.save(run_dir, _score(rows))
            shown |= _shown_score(rows)
        logger.progress(run.step, **shown)
        timesteps, since = 0, time.perf_counter()
    if not run.finished:
        _check_finite(run, metrics)
        logger.flush()
        run.save(run_dir)


def _probes(run: Training) -> list[Any]:
    """Those of the settings. Raises UserError where one is unknown or cannot serve the policy."""
    if not run.config.probes:
        return []
    from decision_s4.agents.probes.during_training import training_probes

    return training_probes(run.config.probes, run.learner.policy)


def _explain(run: Training, logger: Any, probes: list[Any]) -> None:
    from decision_s4.agents.probes.during_training import log_probes

    policy = run.learner.averaged_policy
    log_probes(probes, policy, run.trajectories, run.task.env_id, logger, run.step)


def _log(
    run: Training, logger: Any, metrics: dict[str, torch.Tensor], rate: float
) -> dict[str, float]:
    """Write a point of the curves; returns what of it the progress shows."""
    _check_finite(run, metrics)
    values = {f"train/{name}": value.item() for name, value in metrics.items()}
    values["train/learning_rate"] = run.learner.learning_rate
    logger.log(run.step, values | {"time/timesteps_per_s": rate})
    return {"loss": values["train/loss"], "timesteps/s": round(rate)}


def _check_finite(run: Training, metrics: dict[str, torch.Tensor]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(
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


def _introduction(run: Training, run_dir: Path) -> list[str]:
    parameters, data = parameter_count(run.learner.policy), run.trajectories
    low, mean, high = data.returns.min(), data.returns.mean(), data.returns.max()
    return [
        f"data    {data.name}: {data.num_episodes:,} episodes, {data.num_steps:,} steps",
        f"        returns {low:.1f} … {high:.1f}, mean {mean:.1f}",
        f"policy  {run.config.algo} on {run.body}, {parameters:,} parameters, on {run.device}",
        f"task    {run.task.summary()}",
        *([f"score   {run.task.scale()}"] if run.task.env_id else []),
        f"run     {run_dir}",
        f"watch   tensorboard --logdir {run_dir}",
    ]


def _draw(run: Training, logger: Any, run_dir: Path) -> None:
    """The last policy's videos and its actions beside logged ones; draws on none of the run."""
    from decision_s4.agents.pictures import film, prediction_figure

    policy = run.learner.averaged_policy
    for tag, video in film(Actor(policy), run.task, run_dir / "videos", run.config.seed):
        logger.video(tag, video.frames, video.fps, run.step)
        logger.message(f"video   {video.path} (return {video.episodes.returns[0]:.0f})")
    batch = next(run.whole_episodes()).to(run.device)
    logger.figure("predictions", prediction_figure(policy, batch), run.step)


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
        return parse(_config_class(argv), argv, description=__doc__)
    path = Path(resume) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {resume}: no {CONFIG_FILE} there; give a run's folder")
    before = _before(path)
    config = parse(type(before), argv, defaults=vars(before), description=__doc__)
    if config.run_dir:
        raise UserError(f"--run-dir {config.run_dir} with --resume: give only one of the two")
    for name in sorted(FIXED & vars(before).keys()):
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
