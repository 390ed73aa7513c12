"""Train a policy from logged trajectories: `python train.py --algo decision-s4`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.config import load_config, parse, save_config
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.options import RunOptions
from decision_s4.agents.policy import Actor, PolicyOptions, SequencePolicy, parameter_count
from decision_s4.agents.rng import rng_state, seed_everything, set_rng_state
from decision_s4.agents.run_dir import create_run_dir, default_run_dir
from decision_s4.envs import datasets
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task, task_of
from decision_s4.envs.trajectories import Trajectories

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class TrainConfig(OptimiserOptions, PolicyOptions, RunOptions):
    """Train a policy from logged trajectories, evaluate it, film it."""


class Training:
    """A run: dataset, learner and data order, and where it stands."""

    def __init__(self, config: TrainConfig, trajectories: Trajectories, task: Task):
        self.config, self.task = config, task
        self.device = _device(config.device)
        seed_everything(config.seed)
        options = PolicyOptions(**{f: getattr(config, f) for f in _fields(PolicyOptions)})
        policy = SequencePolicy(trajectories.observation_space, trajectories.action_space, options)
        policy.set_statistics(*trajectories.observation_statistics())
        optimiser = OptimiserOptions(**{f: getattr(config, f) for f in _fields(OptimiserOptions)})
        self.learner = DecisionLearner(policy.to(self.device), optimiser, config.steps)
        self.batches = PackedBatches(trajectories, config.batch_steps, config.seed)
        self.step, self.best = 0, float("-inf")

    def update(self) -> tuple[dict[str, Tensor], int]:
        """One gradient step: its scalars, and how many environment steps it learned from."""
        batch = next(self.batches)
        metrics = self.learner.update(batch.to(self.device))
        self.step += 1
        return metrics, batch.valid.numel()

    def evaluate(self) -> list[dict[str, float | None]]:
        """Rows of eval.csv for the averaged policy."""
        return self.task.evaluate(
            Actor(self.learner.averaged_policy), self.config.eval_episodes, self.config.seed
        )

    def save(self, run_dir: Path, score: float | None = None) -> None:
        """Write a checkpoint; it is the best so far if `score` says so, or if it is the first."""
        first = not (run_dir / "checkpoints" / "best").exists()
        best = first or (score is not None and score > self.best)
        if score is not None:
            self.best = max(self.best, score)
        trainer = {
            "learner": self.learner.state_dict(),
            "batches": self.batches.state_dict(),
            "random": rng_state(),
            "best": self.best,
        }
        policy = self.learner.averaged_policy
        metadata = saved.describe(policy) | {
            "algo": self.config.algo,
            "dataset": self.config.dataset,
            "task": self.task.describe(),
        }
        checkpoint.save(run_dir, self.step, policy.state_dict(), trainer, metadata, best)

    def restore(self, run_dir: Path) -> None:
        """Go on exactly where the run's last checkpoint stands."""
        found = checkpoint.load(run_dir)
        state = found.trainer
        self.learner.load_state_dict(state["learner"])
        self.batches.load_state_dict(state["batches"])
        set_rng_state(state["random"])
        self.step, self.best = found.step, state["best"]


def train(config: TrainConfig) -> Path:
    """Run to the end; returns the run's folder."""
    _check(config)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    trajectories = datasets.load(config.dataset)
    task = task_of(trajectories, config.env, config.target_returns)
    run = Training(config, trajectories, task)
    run_dir = config.resume or create_run_dir(
        config.run_dir or default_run_dir(config.algo, config.dataset, config.seed)
    )
    if config.resume:
        run.restore(run_dir)
    else:
        save_config(config, run_dir / CONFIG_FILE)

    from decision_s4.agents.logger import Logger  # slow to import: not before flags are checked

    with Logger(run_dir, config.steps, config, step=run.step) as logger, _Interrupt() as interrupt:
        _introduce(logger, run, trajectories, run_dir)
        _loop(run, logger, run_dir, interrupt)
        if interrupt.asked:
            logger.message(f"stopped at step {run.step}; go on with --resume {run_dir}")
            raise KeyboardInterrupt
        if config.video and task.env_id:
            _film(run, logger, run_dir)
    return run_dir


def _loop(run: Training, logger: Any, run_dir: Path, interrupt: "_Interrupt") -> None:
    config, timesteps, since = run.config, 0, time.perf_counter()
    while run.step < config.steps and not interrupt.asked:
        metrics, taken = run.update()
        timesteps += taken
        last = run.step == config.steps
        if run.step % config.log_every == 0 or last:
            elapsed = time.perf_counter() - since
            _log(run, logger, metrics, timesteps / elapsed)
            timesteps, since = 0, time.perf_counter()
        if run.step % config.eval_every == 0 or last:
            rows = run.evaluate()
            logger.evaluation(run.step, rows)
            if rows:
                logger.progress(run.step, score=_score(rows))
            logger.flush()
            run.save(run_dir, _score(rows) if rows else None)
            timesteps, since = 0, time.perf_counter()
    if interrupt.asked:
        logger.flush()
        run.save(run_dir)


def _log(run: Training, logger: Any, metrics: dict[str, Tensor], rate: float) -> None:
    values = {name: value.item() for name, value in metrics.items()}
    if not all(map(torch.isfinite, metrics.values())):
        raise UserError(
            f"training diverged at step {run.step} ({values}); the last checkpoint is kept: "
            f"lower --learning-rate {run.config.learning_rate:g}"
        )
    rate_of = run.learner.schedule.get_last_lr()[0]
    logger.log(run.step, {f"train/{name}": value for name, value in values.items()})
    logger.log(run.step, {"train/learning_rate": rate_of, "time/timesteps_per_s": rate})
    logger.progress(run.step, loss=values["loss"])


def _score(rows: list[dict[str, float | None]]) -> float:
    """What "best" means: the mean return of the first target."""
    return float(rows[0]["return_mean"])


def _introduce(logger: Any, run: Training, trajectories: Trajectories, run_dir: Path) -> None:
    logger.message(f"data    {trajectories.summary()}")
    logger.message(
        f"policy  {run.config.algo} on {run.config.backbone}, "
        f"{parameter_count(run.learner.policy):,} parameters, on {run.device}"
    )
    logger.message(f"task    {run.task.summary()}")
    logger.message(f"run     {run_dir} (watch: tensorboard --logdir {run_dir})")
    if run.step:
        logger.message(f"resumed at step {run.step}")


def _film(run: Training, logger: Any, run_dir: Path) -> None:
    from decision_s4.agents.pictures import film, prediction_figure

    actor = Actor(run.learner.averaged_policy)
    for tag, video in film(actor, run.task, run_dir / "videos", run.config.seed):
        logger.video(tag, video.frames, video.fps, run.step)
        logger.message(f"video   {video.path} (return {video.episodes.returns[0]:.0f})")
    batch = next(run.batches).to(run.device)
    logger.figure("predictions", prediction_figure(run.learner.averaged_policy, batch), run.step)


class _Interrupt:
    """Ctrl-C or SIGTERM asks for a stop after the current update; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Interrupt":
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: {reason}; use auto, cpu or cuda") from None


def _fields(options: type) -> list[str]:
    return list(options.__dataclass_fields__)


def _check(config: TrainConfig) -> None:
    least = {"steps": 1, "batch_steps": 1, "eval_every": 1, "eval_episodes": 1, "log_every": 1}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {getattr(config, name)}; use {minimum} or more")
    for name in ("learning_rate", "return_scale"):
        if getattr(config, name) <= 0:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {getattr(config, name)}; use a number above 0")


def settings(argv: Sequence[str]) -> TrainConfig:
    """The settings that the command line asks for; those of a resumed run lie below its flags."""
    config = parse(TrainConfig, argv, description=__doc__)
    if config.resume is None:
        return config
    path = config.resume / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {config.resume}: no {CONFIG_FILE} there; give a run's folder")
    before = load_config(TrainConfig, path)
    values = {name: getattr(before, name) for name in _fields(TrainConfig)}
    return parse(TrainConfig, argv, defaults=values, description=__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 after an interruption."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        train(settings(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
