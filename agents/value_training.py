"""Runs of value-based learners from logged transitions: td3-bc and iql."""

from dataclasses import dataclass

from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.iql import IQLLearner, IQLOptions
from decision_s4.agents.kept import kept
from decision_s4.agents.logged_training import LoggedTraining
from decision_s4.agents.options import DataOptions, part
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.reward_checks import check_values
from decision_s4.agents.td3_bc import TD3BCLearner, TD3BCOptions
from decision_s4.envs.errors import UserError
from decision_s4.envs.transitions import TransitionBatches


@dataclass(frozen=True)
class PerceptronOptions:
    """Sizes of policy, critics and value."""

    d_model: int = kept(256)
    """Width of the hidden layers."""
    n_layers: int = kept(2)
    """Hidden layers."""


@dataclass(frozen=True)
class TD3BCConfig(TD3BCOptions, PerceptronOptions, DataOptions):
    """Train a policy by TD3+BC, evaluate it, film it."""


@dataclass(frozen=True)
class IQLConfig(IQLOptions, PerceptronOptions, DataOptions):
    """Train a policy by implicit Q-learning, evaluate it, film it."""

    scale_rewards: bool = True
    """Whether rewards are scaled so that the data's returns span 1000, as published for Gym."""


class ValueTraining(LoggedTraining):
    """A run over single transitions; `batch_steps` of them make a batch."""

    config: TD3BCConfig | IQLConfig
    batches: TransitionBatches
    body = "a perceptron"

    def new_policy_of_sizes(self) -> FeedForwardPolicy:
        """The untrained perceptron."""
        self.check_alone("--algo decision-s4")
        width, layers = self.config.d_model, self.config.n_layers
        options = PolicyOptions(tokens="observation", d_model=width, n_layers=layers)
        policy = self.new_policy(options)
        assert isinstance(policy, FeedForwardPolicy)
        return policy

    def new_batches(self) -> TransitionBatches:
        """The data order from its beginning. Raises UserError for batches of anything longer."""
        config, data = self.config, self.trajectories
        if config.sampling == "windows":
            raise UserError(f"{config.algo} learns from single steps; leave --sampling out")
        episodes = data.best_episodes(config.data_fraction)
        return TransitionBatches(data, config.batch_steps, config.seed, episodes)


class TD3BCTraining(ValueTraining):
    """A run of TD3+BC."""

    def check_rewards(self) -> None:
        """Raise UserError for rewards too large to learn values of."""
        check_values(self.trajectories)

    def new_learner(self) -> TD3BCLearner:
        """The untrained learner."""
        return TD3BCLearner(self.new_policy_of_sizes(), part(self.config, TD3BCOptions))


class IQLTraining(ValueTraining):
    """A run of implicit Q-learning."""

    config: IQLConfig

    def check_rewards(self) -> None:
        """Raise UserError for rewards too large to learn values of."""
        check_values(self.trajectories, self.reward_scale)

    @property
    def reward_scale(self) -> float:
        """What rewards are multiplied by."""
        returns = self.trajectories.returns
        span = float(returns.max() - returns.min())
        return 1000 / span if self.config.scale_rewards and span > 0 else 1.0

    def new_learner(self) -> IQLLearner:
        """The untrained learner."""
        options = part(self.config, IQLOptions)
        policy = self.new_policy_of_sizes()
        return IQLLearner(policy, options, self.config.steps, self.reward_scale)
