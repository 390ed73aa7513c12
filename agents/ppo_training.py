"""A run of PPO: environments, rollouts, learner, and where it stands."""

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.actor_critic import ActorCritic, ActorCriticOptions
from decision_s4.agents.backbones.base import parse_options
from decision_s4.agents.kept import kept
from decision_s4.agents.moments import Moments, moments_of
from decision_s4.agents.options import RunOptions, part
from decision_s4.agents.policy import parameter_count
from decision_s4.agents.ppo import EXPLODED, PPOLearner, PPOOptions
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.returns import discounted_sums
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.rollouts import Collector, Rollout
from decision_s4.agents.run import Row
from decision_s4.envs.errors import DivergedError
from decision_s4.envs.rollout import open_rows
from decision_s4.envs.spaces import leaf_spaces, map_tree
from decision_s4.envs.stream import Stream
from decision_s4.envs.task import environment_task

RECENT = 100  # episodes in the curves of a rollout, as stable-baselines3 counts them


@dataclass(frozen=True)
class OnlineOptions:
    """How experience is gathered."""

    env_options: tuple[str, ...] = kept(())
    """Arguments of the environment as name=value, such as length=50."""
    rows: int = kept(16)
    """Environments side by side."""
    workers: int = 1
    """Processes that step them; more pay for slow simulators. Tasks as arrays need one."""
    rollout_steps: int = 128
    """Steps of each row between two updates."""
    normalise_observations: bool = kept(True)
    """Whether observations are standardised by their running mean and deviation."""
    normalise_rewards: bool = kept(True)
    """Whether rewards are divided by the running deviation of discounted returns."""


@dataclass(frozen=True)
class PPOConfig(PPOOptions, OnlineOptions, ActorCriticOptions, RunOptions):
    """Train a policy that remembers in an environment by PPO, evaluate it, film it."""

    env: str | None = kept("CartPoleNoVel-v1")
    """Gymnasium id of the environment to learn in."""
    steps: int = 100_000
    """Environment steps, those of all rows together."""
    eval_every: int = 20_000
    """Environment steps between evaluations; each also writes a checkpoint."""
    log_every: int = 1
    """Environment steps between two points of a curve, a rollout's at least."""


class PPOTraining(Resumable):
    """A run in one environment; `step` counts environment steps."""

    config: PPOConfig
    rate_tag = "time/fps"

    def __init__(self, config: PPOConfig, device: torch.device):
        self.config, self.device = config, device
        self.task = environment_task(config.env, parse_options(config.env_options))
        seed_everything(config.seed)
        env_id, kwargs = self.task.environment, self.task.env_kwargs
        rows = open_rows(env_id, config.rows, kwargs, config.workers)
        self.stream = Stream(rows, config.rows, config.seed)
        options = part(config, ActorCriticOptions)
        policy = ActorCritic(rows.observation_space, rows.action_space, options).to(device)
        self.learner = PPOLearner(policy, part(config, PPOOptions))
        self.collector = Collector(self.stream, policy)
        self.seen = moments_of(leaf_spaces(rows.observation_space))
        self.scale, self.sums = Moments(), np.zeros(config.rows)
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.step = 0

    @classmethod
    def begin(cls, config: PPOConfig, device: torch.device) -> Self:
        """A run at its first step. Raises UserError for an environment that cannot be had."""
        return cls(config, device)

    @property
    def policy(self) -> ActorCritic:
        """The policy that learns."""
        return self.learner.policy

    @property
    def acting_policy(self) -> ActorCritic:
        """The same."""
        return self.policy

    @property
    def learning_rate(self) -> float:
        """The rate of the last update."""
        return self.learner.learning_rate

    @property
    def update_steps(self) -> int:
        """Those of a rollout's rows together."""
        return self.config.rows * self.config.rollout_steps

    def update(self) -> tuple[dict[str, Tensor], int]:
        """Gather one rollout and learn from it. Raises UserError where training diverged."""
        config = self.config
        self.learner.set_progress(min(1.0, self.step / config.steps))
        rollout = self.collector.collect(self.policy, config.rollout_steps)
        metrics = self.learner.update(self._scaled(rollout))
        self.step += self.update_steps
        self._check(metrics)
        if config.normalise_observations:
            self._observe(rollout)
        self.recent += rollout.episodes
        return metrics | self._episodes(), self.update_steps

    def _scaled(self, rollout: Rollout) -> Rollout:
        """The rollout on the device, its rewards in units of the values."""
        if self.config.normalise_rewards:
            sums, self.sums = discounted_sums(
                self.sums, rollout.reward, rollout.ended, self.config.discount
            )
            self.scale.add(sums.reshape(-1))
            self.policy.reward_scale.fill_(float(self.scale.deviation))
        names = ("observation", "previous_action", "previous_reward", "start", "action")
        moved = {n: tree_map(lambda leaf: leaf.to(self.device), getattr(rollout, n)) for n in names}
        reward = rollout.reward / self.policy.reward_scale.item()
        return rollout._replace(**moved, reward=reward)

    def _observe(self, rollout: Rollout) -> None:
        """From the next rollout on, observations are standardised with this one's too."""

        def take(moments: Moments, seen: Tensor) -> None:
            moments.add(seen.flatten(0, 1).cpu().numpy())

        map_tree(take, self.seen, rollout.observation)
        self.policy.set_statistics(
            map_tree(lambda moments: moments.mean, self.seen),
            map_tree(lambda moments: moments.deviation, self.seen),
        )

    def _check(self, metrics: dict[str, Tensor]) -> None:
        value = metrics["value_loss"].item()
        if not math.isfinite(metrics["loss"].item()) or value > EXPLODED:
            raise DivergedError(
                f"training diverged: value_loss is {value:.3g} at step {self.step}; "
                f"lower --learning-rate {self.config.learning_rate:g}"
            )

    def _episodes(self) -> dict[str, Tensor]:
        if not self.recent:
            return {}
        returns, lengths = torch.tensor(list(self.recent), dtype=torch.float64).mean(0)
        return {"rollout/ep_rew_mean": returns, "rollout/ep_len_mean": lengths}

    def evaluate(self) -> list[Row]:
        """One row of eval.csv, of the likeliest actions."""
        return self.task.evaluate(
            Actor(self.policy.eval()), self.config.eval_episodes, self.config.seed
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from random generators and simulators."""
        return {
            "learner": self.learner.state_dict(),
            "stream": self.stream.state_dict(),
            "seen": map_tree(lambda moments: moments.state_dict(), self.seen),
            "scale": self.scale.state_dict(),
            "recent": [list(episode) for episode in self.recent],
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on where `state_dict` was taken, at `step`.

        Simulators cannot be saved: every row begins a new episode, with the seed that comes next.
        """
        self.learner.load_state_dict(state["learner"])
        self.stream.load_state_dict(state["stream"])
        map_tree(lambda moments, held: moments.load_state_dict(held), self.seen, state["seen"])
        self.scale.load_state_dict(state["scale"])
        self.sums = np.zeros(self.config.rows)
        self.collector.state = self.policy.initial_state(self.config.rows)
        self.recent.extend((returns, length) for returns, length in state["recent"])
        self.step = step

    def close(self) -> None:
        """Free the environments."""
        self.stream.rows.close()

    def introduction(self) -> list[str]:
        """What learns, and where: lines for a person."""
        config, count = self.config, parameter_count(self.policy)
        return [
            f"task    {self.task.summary()}, {config.rows} rows of {config.rollout_steps} steps",
            f"policy  {config.algo} on {config.backbone}, {count:,} parameters, on {self.device}",
        ]

    def draw(self, logger: Any, run_dir: Path) -> None:
        """A video of the last policy."""
        from decision_s4.agents.pictures import film_into

        agent = Actor(self.policy.eval())
        film_into(logger, run_dir, agent, self.task, self.config.seed, self.step)
