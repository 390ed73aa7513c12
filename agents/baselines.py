"""Runs of stable-baselines3's and sb3-contrib's agents, to compare with: SAC, TD3, PPO, LSTM PPO.

They learn as their libraries do; environments, evaluation, curves, videos and checkpoints are
those of every run here.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from decision_s4.agents.backbones.base import parse_options
from decision_s4.agents.kept import kept
from decision_s4.agents.model_agent import ModelAgent, restore_trainer, trainer_state
from decision_s4.agents.models import ModelOptions, check_arguments, make_model
from decision_s4.agents.options import RunOptions
from decision_s4.agents.policy import parameter_count
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.run import Row
from decision_s4.agents.stream_vec_env import StreamVecEnv
from decision_s4.envs.errors import DivergedError
from decision_s4.envs.rollout import open_rows
from decision_s4.envs.stream import Stream
from decision_s4.envs.task import environment_task

AT_ONCE = 100  # environment steps of an off-policy agent between two looks at interrupts


@dataclass(frozen=True)
class BaselineConfig(RunOptions):
    """Train an agent of stable-baselines3 in an environment, evaluate it, film it."""

    env: str | None = kept("Hopper-v5")
    """Gymnasium id of the environment to learn in."""
    env_options: tuple[str, ...] = kept(())
    """Arguments of the environment as name=value, such as length=50."""
    steps: int = 100_000
    """Environment steps, those of all environments together."""
    eval_every: int = 10_000
    """Environment steps between evaluations; each also writes a checkpoint."""
    log_every: int = 1000
    """Environment steps between two points of a curve, a rollout's at least."""
    environments: int = kept(1)
    """Environments side by side."""
    workers: int = 1
    """Processes that step them; 1: this one."""
    learning_rate: float = 3e-4
    """Of Adam."""
    hidden: tuple[int, ...] = kept(())
    """Widths of the hidden layers of actor and critic; none: the library's own."""
    agent_options: tuple[str, ...] = kept(())
    """Arguments of the library's class as name=value, such as batch_size=128,gamma=0.98."""


@dataclass(frozen=True)
class TD3Config(BaselineConfig):
    """Train TD3."""

    noise: float = 0.1
    """Standard deviation of the Gaussian noise on actions, in units of half the action range."""


@dataclass(frozen=True)
class RecurrentPPOConfig(BaselineConfig):
    """Train PPO with an LSTM."""

    lstm_width: int = kept(256)
    """Width of the LSTM."""


class BaselineTraining(Resumable):
    """A run of such an agent; `step` counts environment steps."""

    config: BaselineConfig
    rate_tag = "time/fps"

    def __init__(self, config: BaselineConfig, device: torch.device):
        self.config = config
        self.task = environment_task(config.env, parse_options(config.env_options))
        arguments = parse_options(config.agent_options)
        check_arguments(config.algo, arguments)
        seed_everything(config.seed)
        env_id, kwargs = self.task.environment, self.task.env_kwargs
        rows = open_rows(env_id, config.environments, kwargs, config.workers)
        self.stream = Stream(rows, config.environments, config.seed)
        self.options = ModelOptions(config.algo, _networks(config))
        arguments |= {"learning_rate": config.learning_rate, "seed": config.seed, "device": device}
        noise = getattr(config, "noise", 0.0)
        env = StreamVecEnv(self.stream)
        self.model = make_model(self.options, env, env_id, arguments, noise)
        self.model.set_logger(Logger(None, []))
        self.step = 0

    @classmethod
    def begin(cls, config: BaselineConfig, device: torch.device) -> Self:
        """A run at its first step. Raises UserError for what cannot be trained."""
        return cls(config, device)

    @property
    def learning_rate(self) -> float:
        """Constant."""
        return self.config.learning_rate

    @property
    def update_steps(self) -> int:
        """Those of a rollout on-policy; off-policy a step of each environment."""
        return self.config.environments * getattr(self.model, "n_steps", 1)

    @property
    def acting_policy(self) -> ModelAgent:
        """What acts."""
        return ModelAgent(self.model.policy, self.options)

    def update(self) -> tuple[dict[str, Tensor], int]:
        """Some steps off-policy, a rollout on-policy. Raises UserError where training diverged."""
        before = self.step
        try:
            self._learn()
        except ValueError as error:  # a distribution of NaN
            self._check(error)
            raise
        self._check()
        return self._metrics() | self._episodes(), self.step - before

    def evaluate(self) -> list[Row]:
        """One row of eval.csv, of the likeliest actions."""
        return self.task.evaluate(self.acting_policy, self.config.eval_episodes, self.config.seed)

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from random generators and simulators."""
        return {"model": trainer_state(self.model), "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on where `state_dict` was taken, at `step`.

        Every environment begins a new episode, with the seed that comes next.
        """
        self.step = step
        restore_trainer(self.model, state["model"], step)
        self.stream.load_state_dict(state["stream"])

    def close(self) -> None:
        """Free the environments."""
        self.stream.rows.close()

    def introduction(self) -> list[str]:
        """What learns, and where: lines for a person."""
        config, count = self.config, parameter_count(self.model.policy)
        return [
            f"task    {self.task.summary()}, {config.environments} side by side",
            f"agent   {config.algo}, {type(self.model).__name__} of stable-baselines3, "
            f"{count:,} parameters",
        ]

    def draw(self, logger: Any, run_dir: Path) -> None:
        """A video of the last policy."""
        from decision_s4.agents.pictures import film_into

        film_into(logger, run_dir, self.acting_policy, self.task, self.config.seed, self.step)

    def _learn(self) -> None:
        try:
            self.model.learn(
                self._at_once(),
                log_interval=None,  # type: ignore[arg-type]  # never; the stub forgot it
                reset_num_timesteps=False,
            )
        finally:
            self.step = self.model.num_timesteps

    def _at_once(self) -> int:
        """Steps of the next `learn`; one rollout on-policy, whatever is asked."""
        if not isinstance(self.model, OffPolicyAlgorithm):
            return 1
        config = self.config
        return min(AT_ONCE, config.log_every, config.eval_every, config.steps - self.step)

    def _metrics(self) -> dict[str, Tensor]:
        """What the library logged since the last time."""
        logger = self.model.logger
        told = {n: v for n, v in logger.name_to_value.items() if n.startswith("train/")}
        logger.dump()
        metrics = {n.removeprefix("train/"): torch.tensor(float(v)) for n, v in told.items()}
        metrics.pop("learning_rate", None)
        return metrics | ({"loss": metrics["critic_loss"]} if "critic_loss" in metrics else {})

    def _episodes(self) -> dict[str, Tensor]:
        recent = self.model.ep_info_buffer
        if not recent:
            return {}
        names = {"r": "rollout/ep_rew_mean", "l": "rollout/ep_len_mean"}
        return {
            tag: torch.tensor(sum(episode[key] for episode in recent) / len(recent))
            for key, tag in names.items()
        }

    def _check(self, cause: Exception | None = None) -> None:
        """Stop where a weight is no number any more, before it is saved."""
        for name, weight in self.model.policy.named_parameters():
            if not math.isfinite(float(weight.detach().sum())):
                raise DivergedError(
                    f"training diverged: {name} is not finite at step {self.step}; "
                    f"lower --learning-rate {self.config.learning_rate:g}"
                ) from cause


def _networks(config: BaselineConfig) -> dict[str, Any]:
    """Arguments of the library's policy class."""
    sizes = {"net_arch": list(config.hidden)} if config.hidden else {}
    width = getattr(config, "lstm_width", None)
    return sizes if width is None else sizes | {"lstm_hidden_size": width}
