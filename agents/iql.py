"""Implicit Q-learning: the value of the better logged actions, without asking for any other.

    V:       minimise mean L_τ(Q̂ − V(s)),  L_τ(u) = |τ − 1(u < 0)| u²,  Q̂ = min_i Q'_i(s, a)
    Q:       minimise Σ_i mean (Q_i(s, a) − r − γ (1 − terminated) V(s'))²
    policy:  minimise mean exp(β (Q̂ − V(s))) d(π(s), a)

with d the head's distance to the logged action: the squared error for Box actions, which is the
published Gaussian's likelihood at a fixed deviation; the cross-entropy for discrete ones
(arXiv 2110.06169, equations 5 to 7; targets Q' by Polyak averaging).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.bootstrapping import follow, one_step_target, squared_error
from decision_s4.agents.critics import ValueFunction, share_statistics
from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.optimisers import Number, adam, half_cosine, take_step
from decision_s4.agents.value_learner import ValueLearner
from decision_s4.envs.transitions import Transitions

LARGEST_WEIGHT = 100.0  # of a logged action, as published


@dataclass(frozen=True)
class IQLOptions:
    """How implicit Q-learning learns."""

    learning_rate: float = 3e-4
    """Of Adam, for all networks; the policy's falls to 0 along half a cosine."""
    discount: float = 0.99
    """γ: what a reward one step later is worth."""
    target_rate: float = 0.005
    """Share of the weights that the target critic takes over at each update."""
    expectile: float = 0.7
    """τ: .5 is the mean of the logged actions' values, towards 1 that of the best."""
    temperature: float = 3.0
    """β: how much more a better action weighs in the policy; 0 clones."""


class IQLLearner(ValueLearner):
    """Fits policy, critics and value to transitions, one update at a time.

    Args:
        policy: what is trained.
        options: how.
        total_steps: the updates over which the policy's rate falls.
        reward_scale: factor on rewards, so that β means the same in every task.
    """

    def __init__(
        self,
        policy: FeedForwardPolicy,
        options: IQLOptions,
        total_steps: int,
        reward_scale: float = 1.0,
    ):
        super().__init__(policy)
        self.options, self.total_steps, self.reward_scale = options, total_steps, reward_scale
        shape = policy.options.d_model, policy.options.n_layers
        self.value = ValueFunction(policy.observation_space, *shape).to(
            policy.head.linear.weight.device
        )
        share_statistics(policy, self.value)
        rate = options.learning_rate
        self.parts |= {
            "value": self.value,
            "policy_optimiser": adam(policy, rate),
            "critic_optimiser": adam(self.critic, rate),
            "value_optimiser": adam(self.value, rate),
        }

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of value, critics and policy; returns detached scalars."""
        for group in self.parts["policy_optimiser"].param_groups:
            group["lr"] = self.options.learning_rate * self.decay(self.updates)
        losses = self.losses(batch)
        found = {n: take_step(self.parts[f"{n}_optimiser"], loss) for n, loss in losses.items()}
        follow(self.target_critic, self.critic, self.options.target_rate)
        self.updates += 1
        return {
            "value_loss": found["value"],
            "loss": found["critic"],
            "policy_loss": found["policy"],
        }

    def losses(self, batch: Transitions) -> dict[str, Tensor]:
        """By the network that each trains; none depends on what another trains."""
        with torch.no_grad():
            next_value = self.value(batch.next_observation)
            logged = self.target_critic(batch.observation, batch.action).min(0).values
        advantage = logged - self.value(batch.observation)
        return {
            "value": expectile_loss(advantage, self.options.expectile),
            "critic": self.critic_loss(batch, next_value),
            "policy": self.policy_loss(batch, advantage.detach()),
        }

    def decay(self, updates: Number) -> Number:
        """The share of the policy's rate that is left after so many updates."""
        return half_cosine(updates / max(1, self.total_steps))

    def critic_loss(self, batch: Transitions, next_value: Tensor) -> Tensor:
        """Σ_i mean (Q_i(s, a) − y)²."""
        reward = batch.reward * self.reward_scale
        target = one_step_target(reward, batch.terminated, next_value, self.options.discount)
        return squared_error(self.critic(batch.observation, batch.action), target)

    def policy_loss(self, batch: Transitions, advantage: Tensor) -> Tensor:
        """mean exp(β A) d(π(s), a)."""
        weight = advantage_weight(advantage, self.options.temperature)
        features, _ = self.policy(batch)
        return (weight * self.policy.head.loss(features, batch.action)).mean()


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """mean |τ − 1(u < 0)| u² of u = `difference`, (…)."""
    return ((expectile - (difference < 0).to(difference.dtype)).abs() * difference.square()).mean()


def advantage_weight(advantage: Tensor, temperature: float) -> Tensor:
    """exp(β A) (…), at most 100."""
    return (temperature * advantage).exp().clamp(max=LARGEST_WEIGHT)
