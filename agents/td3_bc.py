"""TD3+BC: the best action by a learned value, held close to the logged one.

    critic:  minimise Σ_i (Q_i(s, a) − y)²,  y = r + γ (1 − terminated) min_i Q'_i(s', a')
             a' = π'(s') + clipped noise, clipped to the action space
    policy:  minimise −λ mean Q_1(s, π(s)) + mean (π(s) − a)²,  λ = α / mean |Q_1(s, π(s))|

every `policy_delay` updates of the critic (arXiv 2106.06860, equations 3 to 5; TD3: 1802.09477).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.bootstrapping import follow, one_step_target, squared_error, target_of
from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.kept import kept
from decision_s4.agents.optimisers import adam, take_step
from decision_s4.agents.value_learner import ValueLearner
from decision_s4.envs.errors import UserError
from decision_s4.envs.transitions import Transitions


@dataclass(frozen=True)
class TD3BCOptions:
    """How TD3+BC learns."""

    learning_rate: float = 3e-4
    """Of Adam, for policy and critics."""
    discount: float = 0.99
    """γ: what a reward one step later is worth."""
    target_rate: float = 0.005
    """Share of the weights that target networks take over at an update of the policy."""
    value_weight: float = kept(2.5)
    """α: the weight of the learned value beside cloning; 0 clones."""
    policy_delay: int = 2
    """Updates of the critics for one of the policy."""
    target_noise: float = 0.2
    """Noise on the target's action, in units of half the action range."""
    target_noise_limit: float = 0.5
    """Largest such noise."""


class TD3BCLearner(ValueLearner):
    """Fits policy and critics to transitions, one update at a time."""

    def __init__(self, policy: FeedForwardPolicy, options: TD3BCOptions):
        if not isinstance(policy.head, BoxHead):
            raise UserError(f"td3-bc needs Box actions, not {policy.action_space}; take iql")
        super().__init__(policy)
        self.options = options
        self.target_policy = target_of(policy)
        self.parts |= {
            "target_policy": self.target_policy,
            "policy_optimiser": adam(policy, options.learning_rate),
            "critic_optimiser": adam(self.critic, options.learning_rate),
        }

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One step of the critics, every `policy_delay`-th also of the policy; detached scalars."""
        self.updates += 1
        metrics = {"loss": take_step(self.parts["critic_optimiser"], self.critic_loss(batch))}
        if self.updates % self.options.policy_delay == 0:
            loss = self.policy_loss(batch)
            metrics["policy_loss"] = take_step(self.parts["policy_optimiser"], loss)
            follow(self.target_policy, self.policy, self.options.target_rate)
            follow(self.target_critic, self.critic, self.options.target_rate)
        return metrics

    def critic_loss(self, batch: Transitions) -> Tensor:
        """Σ_i mean (Q_i(s, a) − y)²."""
        options, head = self.options, self.policy.head
        assert isinstance(head, BoxHead), "as at the beginning"
        with torch.no_grad():
            action = self.target_policy.act(batch.next_observation)
            action = smoothed(action, head, options.target_noise, options.target_noise_limit)
            value = self.target_critic(batch.next_observation, action).min(0).values
            target = one_step_target(batch.reward, batch.terminated, value, options.discount)
        return squared_error(self.critic(batch.observation, batch.action), target)

    def policy_loss(self, batch: Transitions) -> Tensor:
        """−λ mean Q_1(s, π(s)) + mean (π(s) − a)²."""
        features, _ = self.policy(batch)
        value = self.critic(batch.observation, self.policy.head.act(features, True))[0]
        cloning = self.policy.head.loss(features, batch.action).mean()
        return cloning + value_term(value, self.options.value_weight)


def value_term(value: Tensor, weight: float) -> Tensor:
    """−weight · mean Q / mean |Q|: the value's pull, whatever the scale of rewards."""
    return -weight * value.mean() / value.abs().mean().detach().clamp(min=1e-8)


def smoothed(action: Tensor, head: BoxHead, noise: float, limit: float) -> Tensor:
    """`action` (…) with Gaussian noise clipped to ±limit, clipped to the space (TD3, eq. 14)."""
    reach, centre = head.reach.view(head.shape), head.centre.view(head.shape)
    moved = action + (noise * torch.randn_like(action)).clamp(-limit, limit) * reach
    return moved.clamp(centre - reach, centre + reach) if head.bounded else moved
