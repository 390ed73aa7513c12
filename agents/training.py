"""A training run from logged trajectories: what it is made of, and where it stands."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.distillation import DistillationOptions, DistilledLearner, load_teacher
from decision_s4.agents.distributed import ALONE, World, join
from decision_s4.agents.options import DataOptions, part
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions, parameter_count
from decision_s4.agents.range_aware import RangeAwareLearner, RangeOptions
from decision_s4.agents.recorded import RecordedUpdates, recorded_updates
from decision_s4.agents.relabel import RelabelOptions, relabelled
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.run import Row
from decision_s4.agents.tokens import check_episode_length
from decision_s4.agents.value_regularised import ValueRegularisation, ValueRegularisedLearner
from decision_s4.envs import datasets
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task, task_of
from decision_s4.envs.trajectories import Trajectories
from decision_s4.envs.windows import WindowBatches


@dataclass(frozen=True)
class TrainConfig(
    DistillationOptions,
    RangeOptions,
    ValueRegularisation,
    RelabelOptions,
    OptimiserOptions,
    PolicyOptions,
    DataOptions,
):
    """Train a policy from logged trajectories, evaluate it, film it."""

    hold_return: bool = True
    """Whether target returns outside the range of the returns of the episodes learned from are
    held to it: far outside, a policy knows not what to do."""


class Training(Resumable):
    """A run: dataset, learner and data order, and where it stands."""

    rate_tag = "time/timesteps_per_s"

    def __init__(
        self,
        config: TrainConfig,
        trajectories: Trajectories,
        task: Task,
        device: torch.device,
        world: World = ALONE,
    ):
        self.config, self.trajectories = config, trajectories
        self.task = replace(self.held(task), learned_steps=self.longest_stretch())
        self.device, self.world = device, world
        seed_everything(config.seed)
        self.learner = self.new_learner()
        if not world.leads:
            torch.manual_seed(config.seed + world.rank)  # dropout and noise of its own
        self.batches = self.new_batches()
        self.recorded = self.new_recording()
        self.step = 0
        self.attach_probes()

    @classmethod
    def begin(cls, config: TrainConfig, device: torch.device) -> Self:
        """A run at its first step. Raises UserError for data or a task that cannot be had."""
        trajectories = datasets.load(config.dataset)
        task = task_of(trajectories, config.env, config.target_returns, config.reference_scores)
        return cls(config, trajectories, task, device, join(device))

    @property
    def body(self) -> str:
        """What a run's introduction calls the policy's body."""
        return self.config.backbone

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.learner.learning_rate

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

    def held(self, task: Task) -> Task:
        """The task with its targets held to the returns learned from, where that is asked for."""
        if not (self.config.hold_return and self.config.condition_on_return):
            return task
        returns = self.trajectories.returns
        learned = returns[self.trajectories.best_episodes(self.config.data_fraction)]
        return replace(task, return_range=(float(learned.min()), float(learned.max())))

    def longest_stretch(self) -> int:
        """Steps in a row that a batch shows at most."""
        data, config = self.trajectories, self.config
        longest = int(data.lengths[data.best_episodes(config.data_fraction)].max())
        return min(longest, config.context_steps) if config.sampling == "windows" else longest

    def draw(self, logger: Any, run_dir: Path) -> None:
        """The last policy's videos and its actions beside logged ones; draws on none of the run."""
        from decision_s4.agents.pictures import film_into, prediction_figure

        policy = self.acting_policy
        film_into(logger, run_dir, Actor(policy), self.task, self.config.seed, self.step)
        batch = next(self.whole_episodes()).to(self.device)
        logger.figure("predictions", prediction_figure(policy, batch), self.step)

    def whole_episodes(self) -> PackedBatches:
        """Batches of whole logged episodes, to look at."""
        return PackedBatches(self.trajectories, self.config.batch_steps, self.config.seed)

    def new_learner(self) -> Any:
        """The untrained learner."""
        options = part(self.config, PolicyOptions)
        check_episode_length(int(self.trajectories.lengths.max()), options)
        rates = part(self.config, OptimiserOptions)
        match self._beside_imitation():
            case "distill_from":
                return self._pupil(options, rates)
            case "range_weight":
                own = part(self.config, RangeOptions)
                return RangeAwareLearner(*self._start(options, rates), own, self.world)
            case "value_weight":
                self.check_alone("--value-weight 0")
                own = part(self.config, ValueRegularisation)
                return ValueRegularisedLearner(*self._start(options, rates), own)
        return DecisionLearner(*self._start(options, rates), self.world)

    def _beside_imitation(self) -> str | None:
        """The setting that asks for another loss. Raises UserError where two do."""
        names = ("distill_from", "range_weight", "value_weight")
        asked = [name for name in names if getattr(self.config, name)]
        if len(asked) > 1:
            first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
            raise UserError(f"{first} and {second} exclude each other; use one")
        return asked[0] if asked else None

    def _start(
        self, options: PolicyOptions, rates: OptimiserOptions
    ) -> tuple[Policy, OptimiserOptions, int]:
        return self.new_policy(options), rates, self.config.steps

    def _pupil(self, options: PolicyOptions, rates: OptimiserOptions) -> DistilledLearner:
        teacher = load_teacher(self.config.distill_from, options).to(self.device)
        options = replace(options, backbone_options=(*options.backbone_options, "bias=true"))
        policy, *others = self._start(options, rates)
        steps = self.config.distill_steps
        return DistilledLearner(policy, teacher, *others, steps, self.world)

    @cached_property
    def conditioned(self) -> Trajectories:
        """The data with the returns-to-go to learn from."""
        options = part(self.config, RelabelOptions)
        return relabelled(self.trajectories, options, self.config.seed, self.device)

    def new_policy(self, options: PolicyOptions) -> Policy:
        """An untrained policy for the data, with its observation statistics."""
        data = self.trajectories
        policy = make_policy(data.observation_space, data.action_space, options)
        policy.set_statistics(*data.observation_statistics())
        return policy.to(self.device)

    def new_batches(self) -> PackedBatches | WindowBatches:
        """The data order from its beginning."""
        config, data = self.config, self.conditioned
        share, size = (self.world.rank, self.world.size), config.batch_steps * self.world.size
        episodes = data.best_episodes(config.data_fraction)
        if config.sampling == "windows":
            rows = math.ceil(size / config.context_steps)
            return WindowBatches(data, config.context_steps, rows, config.seed, episodes, share)
        return PackedBatches(data, size, config.seed, episodes=episodes, share=share)

    def check_alone(self, instead: str) -> None:
        """Raise UserError where several processes train what only one can."""
        if self.world.size > 1:
            raise UserError(
                f"{self.world.size} processes cannot train this together; start one, or take "
                f"{instead}"
            )

    def new_recording(self) -> RecordedUpdates | None:
        """What replays updates as one graph, where asked for and possible."""
        asked = self.config.record_updates
        return recorded_updates(self.learner, self.device) if asked else None

    def update(self) -> tuple[dict[str, Tensor], int]:
        """One gradient step: its scalars, and how many environment steps it learned from."""
        batch = next(self.batches)
        if self.recorded:
            metrics = self.recorded.update(batch)
        else:
            metrics = self.learner.update(batch.to(self.device))
        self.step += 1
        return metrics, int(batch.valid.sum())

    def evaluate(self) -> list[Row]:
        """Rows of eval.csv for the averaged policy; none without an environment."""
        actor = Actor(self.acting_policy)
        return self.task.evaluate(actor, self.config.eval_episodes, self.config.seed)

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

    @property
    def acting_policy(self) -> Policy:
        """That of averaged weights."""
        return self.learner.averaged_policy

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
