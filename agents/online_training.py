"""Runs of ds4-online: their rounds of acting and learning, their checkpoints.

A checkpoint holds weights, optimisers, targets, replay, counters and generators, and what is
learned from the same replay goes on bit for bit. The environments' states are in none: on
resuming, new episodes begin where some were under way.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.ds4_online import DS4OnlineLearner, DS4OnlineOptions
from decision_s4.agents.explorer import ExplorationOptions, Explorer
from decision_s4.agents.logged_replay import remember
from decision_s4.agents.online_beginning import (
    DS4OnlineConfig,
    beginning,
    logged_dataset,
    logged_steps,
)
from decision_s4.agents.options import part
from decision_s4.agents.policy import parameter_count
from decision_s4.agents.replay import Replay, this_step
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.run import Row
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import DivergedError, UserError
from decision_s4.envs.rollout import open_rows
from decision_s4.envs.task import Task

EXPLODED = 10.0
"""Values this many times beyond what the largest reward, for ever, adds up to are no values."""


class OnlineTraining(Resumable):
    """A run of ds4-online; its task asks for the return that is aimed at now."""

    config: DS4OnlineConfig
    rate_tag = "time/fps"

    def __init__(
        self, config: DS4OnlineConfig, policy: SequencePolicy, task: Task, device: torch.device
    ):
        if device.type != "cpu":
            raise UserError(f"--device {device}: ds4-online trains on the CPU; use --device cpu")
        self.config = replace(config, dataset=logged_dataset(config) or "none")
        self.task, self.step = task, 0
        options = part(config, DS4OnlineOptions)
        pretrained = config.from_run is not None
        self.learner = DS4OnlineLearner(policy, options, pretrained, config.hindsight)
        self.replay = Replay(config.replay_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        rows = open_rows(task.environment, config.environments, task.env_kwargs, config.workers)
        exploration = part(config, ExplorationOptions)
        target, seed = task.target_returns[0] or 0.0, 10**6 * (config.seed + 1)
        self.explorer = Explorer(rows, config.environments, exploration, target, seed)
        self.largest_reward, self.due = 0.0, 0.0

    @classmethod
    def begin(cls, config: DS4OnlineConfig, device: torch.device) -> "OnlineTraining":
        """A run at its first step. Raises UserError for what cannot be trained."""
        seed_everything(config.seed)
        return cls(config, *beginning(config), device)

    @property
    def learning_rate(self) -> float:
        """The actor's."""
        return self.learner.learning_rate

    def close(self) -> None:
        """Free the environments."""
        self.explorer.rows.close()

    @property
    def update_steps(self) -> int:
        """Those of a round."""
        count = self.config.environments
        return count * max(1, self.config.round_steps // count)

    def introduction(self) -> list[str]:
        """What learns, where, and from what."""
        policy, source = self.learner.policy, self.config.from_run or "an untrained policy"
        return [
            f"policy  {policy.options.backbone}, {parameter_count(policy):,} parameters, "
            f"from {source}",
            f"critic  {parameter_count(self.learner.critic):,} parameters",
            f"data    {logged_dataset(self.config) or 'none: the replay begins empty'}",
            f"task    {self.task.summary()}",
            f"score   {self.task.scale()}",
        ]

    def update(self) -> tuple[dict[str, Tensor], int]:
        """A round: act, then learn from the replay."""
        config, before = self.config, self.step
        if not len(self.replay):
            self._remember()
        self.explorer.act_as(self.learner.policy, self.learner.stored)
        returns = self._act(self.update_steps // config.environments)
        self.step = self.explorer.steps
        self._aim()
        metrics = self._learn(self.step - before) | self._books(returns)
        self._check(metrics)
        return metrics, self.step - before

    def evaluate(self) -> list[Row]:
        """A row of eval.csv for the smoothed policy, asked for the return that is aimed at now."""
        actor = Actor(self.acting_policy)
        rows = self.task.evaluate(actor, self.config.eval_episodes, self.config.seed)
        return [row | {"target_return": None} for row in rows]

    @property
    def acting_policy(self) -> SequencePolicy:
        """The smoothed one."""
        return self.learner.averaged_policy

    def _aim(self) -> None:
        """Ask for the return that the explorer aims at now."""
        self.task = replace(self.task, target_returns=(self.explorer.target,))

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from the global random generators."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict() if self.config.save_replay else None,
            "explorer": self.explorer.state_dict(),
            "generator": self.generator.get_state(),
            "largest_reward": self.largest_reward,
            "due": self.due,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on where `state_dict` was taken, at `step`; every row begins a new episode."""
        self.learner.load_state_dict(state["learner"])
        self.explorer.load_state_dict(state["explorer"])
        if state["replay"] is not None and self.config.save_replay:
            self.replay.load_state_dict(state["replay"])
            self._check_replay()
        self.generator.set_state(state["generator"])
        self.due, self.largest_reward = float(state["due"]), float(state["largest_reward"])
        self.step = step

    def draw(self, logger: Any, run_dir: Path) -> None:
        """A video of the smoothed policy."""
        from decision_s4.agents.pictures import film_into

        actor = Actor(self.acting_policy)
        film_into(logger, run_dir, actor, self.task, self.config.seed, self.step)

    def _remember(self) -> None:
        """Fill the replay with logged steps. Raises UserError for data of other spaces."""
        name = logged_dataset(self.config)
        if name is not None:
            policy = self.learner.policy
            data, target = logged_steps(name, policy), self.explorer.target
            remember(self.replay, data, policy, self.learner.stored, target)

    def _check_replay(self) -> None:
        """Raise UserError for states of another form than those that are kept now."""
        policy, stored = self.learner.policy, self.learner.stored
        if not len(self.replay):
            return
        newest = self.replay.recent(1)
        kept = stored.keep(policy.initial_state(1), this_step(newest))
        if tree_map(lambda leaf: leaf.shape, kept) != tree_map(
            lambda leaf: leaf.shape, newest.state
        ):
            raise UserError(
                "its replay keeps states in another form than this version; --no-save-replay goes "
                "on without it, from the logged steps alone"
            )

    def _act(self, times: int) -> list[float]:
        ended = [self.explorer.step(self.replay, self.learner.updates) for _ in range(times)]
        return [value for returns in ended for value in returns]

    def _learn(self, steps: int) -> dict[str, Tensor]:
        self.due += steps * self.config.updates_per_step
        count = max(1, int(self.due))
        metrics: dict[str, Tensor] = {}
        self.due = max(0.0, self.due - count)
        trains_actor = self.step > self.config.critic_warmup
        if trains_actor and self.step - steps <= self.config.critic_warmup:
            self._evaluate_critics(self.config.warmup_updates)
        self.learner.set_progress(self._progress())
        for _ in range(count):
            batch = self.replay.sample(self.config.batch_size, self.generator)
            metrics |= self.learner.update(batch, trains_actor, self.generator)
        return metrics

    def _evaluate_critics(self, count: int) -> None:
        for _ in range(count):
            batch = self.replay.sample(self.config.batch_size, self.generator)
            self.learner.update(batch, False, self.generator)

    def _progress(self) -> float:
        config = self.config
        after_warmup = max(1, config.steps - config.critic_warmup)
        return min(1.0, max(0.0, (self.step - config.critic_warmup) / after_warmup))

    def _books(self, returns: list[float]) -> dict[str, Tensor]:
        explorer = self.explorer
        books = {"target_return": explorer.target, "noise": explorer.noise}
        if returns:
            books["ep_rew_mean"] = sum(returns) / len(returns)
        return {f"rollout/{name}": torch.tensor(value) for name, value in books.items()}

    def _check(self, metrics: dict[str, Tensor]) -> None:
        """Stop before a checkpoint of a run that diverged."""
        newest = self.replay.recent(self.config.round_steps).reward
        self.largest_reward = max(self.largest_reward, float(newest.abs().max()))
        bound = EXPLODED * self.largest_reward / max(1e-9, 1 - self.learner.options.discount)
        for name, value in metrics.items():
            wrong = not math.isfinite(value)
            if wrong or (name in ("value", "actor_value") and abs(value) > bound):
                raise DivergedError(
                    f"training diverged: {name} is {float(value):g} at environment step "
                    f"{self.step}, rewards were {self.largest_reward:g} at most; lower "
                    f"--critic-learning-rate {self.config.critic_learning_rate:g}, "
                    f"--actor-learning-rate {self.config.actor_learning_rate:g} or "
                    f"--discount {self.config.discount:g}"
                )
