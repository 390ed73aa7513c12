"""Return-conditioned learning with a learned value beside it, so that it prefers better actions.

    policy:  minimise  mean d(π_t, a_t) − w mean Q_1(s_t, π_t) / mean |Q_1|
    critic:  minimise  Σ_i mean (Q_i(s_t, a_t) − y_t)²
             y_t = r_t + γ (1 − terminated_t) min_i Q'_i(s_{t+1}, π'_{t+1})

over the steps of packed rows: π_t = π(R_t, s_t, a_{t−1}, h_{t−1}) of the logged episode, π' the
policy of averaged weights, Q' by Polyak averaging. It joins return conditioning with TD3+BC, as
the Q-value regularised transformer does (arXiv 2405.17098, there with n-step targets).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.bootstrapping import follow, one_step_target, squared_error, target_of
from decision_s4.agents.critics import TwinCritic, share_statistics
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.kept import kept
from decision_s4.agents.optimisers import adam, restore, take_step
from decision_s4.agents.policy import Policy
from decision_s4.agents.td3_bc import value_term
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import map_tree


@dataclass(frozen=True)
class ValueRegularisation:
    """Whether and how a learned value pulls the policy."""

    value_weight: float = kept(0.0)
    """w: weight of the learned value beside imitation; 0 learns no value."""
    value_discount: float = 0.99
    """γ: what a reward one step later is worth to the learned value."""
    critic_width: int = kept(256)
    """Width of the critics' two hidden layers."""
    critic_learning_rate: float = 3e-4
    """Of Adam, for the critics."""
    critic_target_rate: float = 0.005
    """Share of the weights that the target critics take over at each update."""


class ValueRegularisedLearner(DecisionLearner):
    """A DecisionLearner with twin critics. Raises UserError for actions that are no Box."""

    def __init__(
        self,
        policy: Policy,
        options: OptimiserOptions,
        total_steps: int,
        regularisation: ValueRegularisation,
    ):
        super().__init__(policy, options, total_steps)
        if not isinstance(policy.head, BoxHead):
            raise UserError(f"--value-weight needs Box actions, not {policy.action_space}; use 0")
        self.regularisation, width = regularisation, regularisation.critic_width
        critic = TwinCritic(policy.observation_space, policy.action_space, width, 2)
        self.critic = critic.to(policy.head.reach.device)
        share_statistics(policy, self.critic)
        self.target_critic = target_of(self.critic)
        self.critic_optimiser = adam(self.critic, regularisation.critic_learning_rate)

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the critics, then one of the policy; returns detached scalars."""
        critic_loss = take_step(self.critic_optimiser, self.critic_loss(batch))
        metrics = super().update(batch)
        follow(self.target_critic, self.critic, self.regularisation.critic_target_rate)
        return metrics | {"critic_loss": critic_loss}

    def critic_loss(self, batch: Any) -> Tensor:
        """Σ_i mean (Q_i(s_t, a_t) − y_t)² over the steps whose next observation is in the row."""
        with torch.no_grad():
            action = self.policy.head.act(self.averaged_policy(batch)[0], True)
            value = self.target_critic(batch.observation, action).min(0).values
            target, known = packed_targets(batch, value, self.regularisation.value_discount)
        value = self.critic(_at(batch.observation, known), _at(batch.action, known))
        return squared_error(value, target[known])

    def loss(self, batch: Any) -> Tensor:
        """The imitation's loss and the value's pull."""
        features, _ = self.policy(batch)
        seen, action, features = (
            _at(part, batch.valid) for part in (batch.observation, batch.action, features)
        )
        imitation = self.policy.head.loss(features, action).mean()
        value = self.critic(seen, self.policy.head.act(features, True))[0]
        return imitation + value_term(value, self.regularisation.value_weight)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return super().state_dict() | {n: part.state_dict() for n, part in self._added().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        super().load_state_dict(state)
        for name, part in self._added().items():
            restore(part, state[name])

    def _added(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        names = ("critic", "target_critic", "critic_optimiser")
        return {name: getattr(self, name) for name in names}


def packed_targets(batch: Any, value: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """(y_t, whether it is known), both (B, T), of V(s_t) = `value` (B, T) in packed rows.

    A step's next observation stands after it in the row, unless its episode ends there: then y_t is
    known after a termination only.
    """
    follows = batch.valid.clone()
    follows[:, :-1] &= batch.valid[:, 1:] & ~batch.start[:, 1:]
    follows[:, -1] = False
    target = one_step_target(batch.reward, batch.terminated, value.roll(-1, 1), discount)
    return target, follows | (batch.terminated & batch.valid)


def _at(tree: Any, where: Tensor) -> Any:
    return map_tree(lambda leaf: leaf[where], tree)
