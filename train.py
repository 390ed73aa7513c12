"""Train a policy: `python train.py --algo decision-s4`, or `--algo ppo --env CartPoleNoVel-v1`."""

import os

from decision_s4.agents.interrupt import end_quietly

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators
if __name__ == "__main__":
    end_quietly()

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from decision_s4.agents import checkpoint
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import describe_changes
from decision_s4.agents.devices import choose_device, use_threads
from decision_s4.agents.distributed import processes
from decision_s4.agents.eval_table import read_rows
from decision_s4.agents.interrupt import Interrupt
from decision_s4.agents.options import RunOptions, check_ranges
from decision_s4.agents.program import exit_code
from decision_s4.agents.run import Row, Run
from decision_s4.agents.run_dir import EVAL_FILE, alone_in, create_run_dir, default_run_dir
from decision_s4.agents.settings import portable, save_settings, saved_settings, settings
from decision_s4.envs.errors import DivergedError, SimulatorError, UserError

RETURN_TAG = "rollout/ep_rew_mean"


def train(config: RunOptions) -> Path | None:
    """Run to the end; returns the run's folder.

    Raises UserError for bad input, KeyboardInterrupt once an interrupted run is saved.
    """
    check_ranges(config)
    device = choose_device(config.device)
    use_threads(config.threads)
    before = saved_settings(config.resume) if config.resume else None
    run = algorithm_of(config.algo).begin(config, device)
    if run.world.size != processes():
        raise UserError(f"--algo {config.algo} trains in one process; start it without torchrun")
    try:
        with closing(run):
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
    folder = run.config.resume
    return _begin(run) if folder is None or before is None else _resume(run, folder, before)


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
    with alone_in(run_dir):
        try:
            save_settings(config, run_dir)
            _record(run, run_dir)
        except Exception:
            if not checkpoint.any_in(run_dir):
                shutil.rmtree(run_dir)  # nothing to go on with, and a retry finds its folder free
            raise
    return run_dir


def _resume(run: Run, run_dir: Path, before: RunOptions) -> Path:
    with alone_in(run_dir):
        run.restore(run_dir)
        if run.finished:
            done = f"step {run.step} of {run.total_steps}"
            print(f"{run_dir} is finished: {done}; {_what_is_left(run, run_dir)}")
            return run_dir
        read_rows(run_dir / EVAL_FILE, run.step)  # a foreign table is refused before all else
        changes = describe_changes(before, portable(run.config))
        save_settings(run.config, run_dir)
        _record(run, run_dir, [f"resumed at step {run.step}", *(f"changed {c}" for c in changes)])
    return run_dir


def _what_is_left(run: Run, run_dir: Path) -> str:
    on = "train on with more --steps"
    filmed = len(list((run_dir / "videos").glob("*.mp4")))
    if not run.config.video or filmed >= len(run.task.target_returns) or not run.task.env_id:
        return on
    return f"{on}, or film it: evaluate.py {run_dir} --checkpoint last --video"


def _record(run: Run, run_dir: Path, notes: Sequence[str] = ()) -> None:
    """Train, evaluate, save and film, with everything logged."""
    from decision_s4.agents.logger import Logger  # slow to import: not before flags are checked

    config = run.config
    with Logger(run_dir, run.total_steps, config, step=run.step) as logger:
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
    print(*run.conclusion(run_dir), sep="\n", flush=True)


def _what_is_kept(run_dir: Path) -> str:
    if not checkpoint.any_in(run_dir):
        return "no checkpoint had been written"
    return f"go on from the last checkpoint with --resume {run_dir}"


def _loop(run: Run, logger: Any, run_dir: Path, interrupt: Interrupt) -> None:
    config, timesteps, since = run.config, 0, time.perf_counter()
    metrics: Mapping[str, torch.Tensor] = {}
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
            rate = vars(run.config).get("learning_rate", run.learning_rate)
            raise DivergedError(
                f"training diverged: {name} is {value.item()} at step {run.step}; "
                f"lower --learning-rate {rate:g}"
            )


def _score(rows: list[Row]) -> float | None:
    """What "best" means: the mean return of the first target; None without evaluation."""
    return rows[0]["return_mean"] if rows else None


def _shown_score(rows: list[Row]) -> dict[str, float]:
    """The first target's score, or its return where there is no scale."""
    if not rows:
        return {}
    shown = {"score": rows[0]["normalized_score"], "return": rows[0]["return_mean"]}
    known = [(name, value) for name, value in shown.items() if value is not None]
    return dict(known[:1])


def _introduction(run: Run, run_dir: Path) -> list[str]:
    beyond = (
        f"until   {run.total_steps}: --steps {run.config.steps}, and on to the end of an update "
    )
    return [
        *run.introduction(),
        *([f"{beyond}of {run.update_steps}"] if run.total_steps > run.config.steps else []),
        f"run     {run_dir}",
        f"watch   tensorboard --logdir {run_dir}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 interrupted, 141 unread."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_code("train.py", lambda: train(settings(argv, __doc__)))


if __name__ == "__main__":
    sys.exit(main())
