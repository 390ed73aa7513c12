"""Training of sequence policies from logged trajectories, by imitation and what goes with it."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.distillation import DistillationOptions, DistilledLearner, load_teacher
from decision_s4.agents.distributed import ALONE, World
from decision_s4.agents.flags import hyphened
from decision_s4.agents.logged_training import LoggedTraining
from decision_s4.agents.options import DataOptions, part
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.range_aware import RangeAwareLearner, RangeOptions
from decision_s4.agents.recorded import recorded_updates
from decision_s4.agents.relabel import RelabelOptions, relabelled
from decision_s4.agents.reward_checks import check_returns, check_values
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.tokens import check_episode_length
from decision_s4.agents.value_regularised import ValueRegularisation, ValueRegularisedLearner
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task
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


class Training(LoggedTraining):
    """A run of a sequence policy. See LoggedTraining."""

    config: TrainConfig
    learner: DecisionLearner

    def __init__(
        self,
        config: TrainConfig,
        trajectories: Trajectories,
        task: Task,
        device: torch.device,
        world: World = ALONE,
    ):
        super().__init__(config, trajectories, task, device, world)
        self.recorded = recorded_updates(self.learner, device) if config.record_updates else None

    @property
    def body(self) -> str:
        """The backbone."""
        return self.config.backbone

    def check_rewards(self) -> None:
        """Raise UserError for returns-to-go that are no input, or rewards that have no value."""
        if self.config.condition_on_return:
            check_returns(self.trajectories, self.config.return_scale)
        if self.config.value_weight:
            check_values(self.trajectories)

    def held(self, task: Task) -> Task:
        """The task with its targets held to the returns learned from, where that is asked for."""
        if not (self.config.hold_return and self.config.condition_on_return):
            return task
        returns = self.trajectories.returns
        learned = returns[self.trajectories.best_episodes(self.config.data_fraction)]
        return replace(task, return_range=(float(learned.min()), float(learned.max())))

    def longest_stretch(self) -> int:
        """Steps in a row that a batch shows at most."""
        longest, config = super().longest_stretch(), self.config
        return min(longest, config.context_steps) if config.sampling == "windows" else longest

    def new_learner(self) -> DecisionLearner:
        """The untrained learner."""
        options = part(self.config, PolicyOptions)
        check_episode_length(int(self.trajectories.lengths.max()), options)
        rates = part(self.config, OptimiserOptions)
        match self._beside_imitation():
            case "distill_from":
                return self._pupil(options, rates)
            case "range_weight":
                limits = part(self.config, RangeOptions)
                return RangeAwareLearner(*self._start(options, rates), limits, self.world)
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
            first, second = (f"--{hyphened(name)}" for name in asked[:2])
            raise UserError(f"{first} and {second} exclude each other; use one")
        return asked[0] if asked else None

    def _start(
        self, options: PolicyOptions, rates: OptimiserOptions
    ) -> tuple[Policy, OptimiserOptions, int]:
        return self.new_policy(options), rates, self.config.steps

    def _pupil(self, options: PolicyOptions, rates: OptimiserOptions) -> DistilledLearner:
        config = self.config
        assert config.distill_from is not None
        teacher = load_teacher(config.distill_from, options).to(self.device)
        options = replace(options, backbone_options=(*options.backbone_options, "bias=true"))
        policy = self.new_policy(options)
        assert isinstance(policy, SequencePolicy), "as its teacher"
        steps = config.steps, config.distill_steps
        return DistilledLearner(policy, teacher, rates, *steps, self.world)

    @cached_property
    def conditioned(self) -> Trajectories:
        """The data with the returns-to-go to learn from."""
        options = part(self.config, RelabelOptions)
        return relabelled(self.trajectories, options, self.config.seed, self.device)

    def new_batches(self) -> PackedBatches | WindowBatches:
        """The data order from its beginning."""
        config, data = self.config, self.conditioned
        share, size = (self.world.rank, self.world.size), config.batch_steps * self.world.size
        episodes = data.best_episodes(config.data_fraction)
        if config.sampling == "windows":
            rows = math.ceil(size / config.context_steps)
            return WindowBatches(data, config.context_steps, rows, config.seed, episodes, share)
        return PackedBatches(data, size, config.seed, episodes=episodes, share=share)

    def learn(self, batch: Any) -> dict[str, Tensor]:
        """The gradient step, replayed as one graph where asked for and possible."""
        return self.recorded.update(batch) if self.recorded else super().learn(batch)
