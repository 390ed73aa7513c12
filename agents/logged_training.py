"""A training run from logged trajectories, whatever learns: what it is made of, where it stands."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.distributed import ALONE, World, join
from decision_s4.agents.learner import Batches, Learner
from decision_s4.agents.options import DataOptions
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions, parameter_count
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.run import Row
from decision_s4.envs import datasets
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task, task_of
from decision_s4.envs.trajectories import Trajectories


class LoggedTraining(Resumable):
    """A run: dataset, learner and data order, and where it stands. A subclass makes the latter two.

    Args:
        config: the settings.
        trajectories: what to learn from.
        task: what the policy is evaluated in.
        device: where it learns.
        world: the processes that train together.
    """

    config: Any
    """DataOptions, with what the subclass's learner asks for."""
    rate_tag = "time/timesteps_per_s"

    def __init__(
        self,
        config: DataOptions,
        trajectories: Trajectories,
        task: Task,
        device: torch.device,
        world: World = ALONE,
    ):
        self.config, self.trajectories = config, trajectories
        self.check_rewards()
        self.task = replace(self.held(task), learned_steps=self.longest_stretch())
        self.device, self.world = device, world
        seed_everything(config.seed)
        self.learner = self.new_learner()
        if not world.leads:
            torch.manual_seed(config.seed + world.rank)  # dropout and noise of its own
        self.batches = self.new_batches()
        self.step = 0
        self.attach_probes()

    @classmethod
    def begin(cls, config: Any, device: torch.device) -> Self:
        """A run at its first step. Raises UserError for data or a task that cannot be had."""
        trajectories = datasets.load(config.dataset)
        task = task_of(trajectories, config.env, config.target_returns, config.reference_scores)
        return cls(config, trajectories, task, device, join(device))

    @property
    def body(self) -> str:
        """What a run's introduction calls the policy's body."""
        raise NotImplementedError

    def new_learner(self) -> Learner:
        """The untrained learner."""
        raise NotImplementedError

    def new_batches(self) -> Batches:
        """The data order from its beginning."""
        raise NotImplementedError

    def check_rewards(self) -> None:
        """Raise UserError for rewards of a size that nothing can be learned from."""
        raise NotImplementedError

    def held(self, task: Task) -> Task:
        """The task as the policy is asked for it: as it is, where it aims at no return."""
        return task

    def longest_stretch(self) -> int:
        """Steps in a row that a batch shows at most: those of the longest episode."""
        data = self.trajectories
        return int(data.lengths[data.best_episodes(self.config.data_fraction)].max())

    def new_policy(self, options: PolicyOptions) -> Policy:
        """An untrained policy for the data, with its observation statistics."""
        data = self.trajectories
        policy = make_policy(data.observation_space, data.action_space, options)
        policy.set_statistics(*data.observation_statistics())
        return policy.to(self.device)

    def check_alone(self, instead: str) -> None:
        """Raise UserError where several processes train what only one can."""
        if self.world.size > 1:
            raise UserError(
                f"{self.world.size} processes cannot train this together; start one, or take "
                f"{instead}"
            )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.learner.learning_rate

    @property
    def acting_policy(self) -> Policy:
        """That of averaged weights."""
        return self.learner.averaged_policy

    def introduction(self) -> list[str]:
        """What it learns from, what learns, and how that is judged: lines for a person."""
        parameters, data = parameter_count(self.learner.policy), self.trajectories
        low, mean, high = data.returns.min(), data.returns.mean(), data.returns.max()
        return [
            f"data    {data.name}: {data.num_episodes:,} episodes, {data.num_steps:,} steps",
            f"        returns {low:.1f} … {high:.1f}, mean {mean:.1f}",
            f"policy  {self.config.algo} on {self.body}, {parameters:,} parameters, "
            f"on {self.device}",
            f"task    {self.task.summary()}",
            *(f"        {line}" for line in self.task.held()),
            *([f"score   {self.task.scale()}"] if self.task.env_id else []),
        ]

    def update(self) -> tuple[dict[str, Tensor], int]:
        """One gradient step: its scalars, and how many environment steps it learned from."""
        batch = next(self.batches)
        metrics = self.learn(batch)
        self.step += 1
        return metrics, int(batch.valid.sum())

    def learn(self, batch: Any) -> dict[str, Tensor]:
        """The gradient step on a batch that lies on the CPU; returns its scalars."""
        return self.learner.update(batch.to(self.device))

    def evaluate(self) -> list[Row]:
        """Rows of eval.csv for the averaged policy; none without an environment."""
        actor = Actor(self.acting_policy)
        return self.task.evaluate(actor, self.config.eval_episodes, self.config.seed)

    def draw(self, logger: Any, run_dir: Path) -> None:
        """The last policy's videos and its actions beside logged ones; draws on none of the run."""
        from decision_s4.agents.pictures import film_into, prediction_figure

        policy = self.acting_policy
        film_into(logger, run_dir, Actor(policy), self.task, self.config.seed, self.step)
        batch = next(self.whole_episodes()).to(self.device)
        logger.figure("predictions", prediction_figure(policy, batch, self.task.env_id), self.step)

    def whole_episodes(self) -> PackedBatches:
        """Batches of whole logged episodes, to look at."""
        return PackedBatches(self.trajectories, self.config.batch_steps, self.config.seed)

    def attach_probes(self) -> None:
        """Those asked for. Raises UserError for one that is unknown, slow or cannot serve."""
        if self.config.probes:
            from decision_s4.agents.probes.during_training import training_probes

            policy = self.learner.policy
            policy.attach(*training_probes(self.config.probes, policy))

    def explain(self, logger: Any) -> None:
        """Log what the policy's probes tell of its average."""
        probes, policy = self.learner.policy.probes, self.acting_policy
        if probes:
            from decision_s4.agents.probes.during_training import log_probes

            log_probes(probes, policy, self.trajectories, self.task.env_id, logger, self.step)

    def metadata(self) -> dict[str, Any]:
        """Plain values that a checkpoint tells of the run."""
        return super().metadata() | {"dataset": self.config.dataset}

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from random generators."""
        return {"learner": self.learner.state_dict(), "batches": self.batches.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on exactly where `state_dict` was taken, at `step`."""
        self.learner.load_state_dict(state["learner"])
        self.batches.load_state_dict(state["batches"])
        self.step = step
