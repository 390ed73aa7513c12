"""Decision S4 on-policy: a recurrent actor-critic, updated by single steps from stored states.

    y = r + γ (1 − terminated) min_i Q'_i(s', π'(s', a, R'; h'), R')
    critic: minimise  mean (Q_i(s, a, R) − y)²
    actor:  minimise  − mean Q_1(s, π(s, a₋, R; h), R) / mean |Q_1|  +  w mean d(π, π₀)

h is the recurrent state that the actor had; no gradient goes back through time (Decision S4,
arXiv 2306.05167, section "on-policy", after DDPG, arXiv 1509.02971). Beyond the paper: several
critics and noise on the target's action (TD3, arXiv 1802.09477), layer norm in the critic, and the
anchor w to the policy π₀ that training began with (after TD3+BC, arXiv 2106.06860); a weight of
1, 0 and so on turns each off. Shapes: B transitions, E critics.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from decision_s4.agents.bootstrapping import one_step_target, squared_error, target_of
from decision_s4.agents.critics import CriticEnsemble
from decision_s4.agents.freezing import freeze
from decision_s4.agents.kept import kept
from decision_s4.agents.optimisers import adam, restore, take_own_step
from decision_s4.agents.replay import Transition, next_step, this_step
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import (
    NewState,
    StoredState,
    stored_state,
)
from decision_s4.envs.actions import disturbed
from decision_s4.envs.errors import UserError


@dataclass(frozen=True)
class DS4OnlineOptions:
    """How actor and critics learn from replay."""

    freeze: Literal["auto", "states", "memory", "core", "nothing"] = kept("auto")
    """What stands still: all that feeds a state, so that stored ones stay exact; each state space;
    each but its read-out C; or nothing. "auto" is "states" where a run is begun from, "memory" from
    scratch. With another backbone, "memory" and "core" both freeze its recurrence parameters."""
    store_states: bool = kept(True)
    """Whether an update's steps begin from the states that the actor had in them; without them each
    begins from a new state, as an episode does."""
    actor_learning_rate: float = 3e-4
    """Of the actor, constant."""
    critic_learning_rate: float = 5e-4
    """Of the critics, constant."""
    gradient_clip: float = 0.5
    """Largest norm of the actor's gradients, and of the critics."""
    discount: float = 0.99
    """γ, by which each later reward counts for less."""
    critic_warmup: int = 10000
    """Environment steps in which the critics learn alone and the actor stands still."""
    target_rate: float = 0.01
    """How far target networks move towards the trained ones at a time; 1 copies them."""
    target_every: int = 1
    """Updates of the critics between two moves of the target networks."""
    critics: int = kept(2)
    """Critics, the lowest of which makes the target; 1 is DDPG's."""
    critic_width: int = kept(128)
    """Width of the critics' hidden layers."""
    critic_layers: int = kept(2)
    """Hidden layers of each critic."""
    critic_norm: bool = kept(True)
    """LayerNorm before each activation of the critics."""
    critic_return: bool = kept(False)
    """Whether the critics see the return-to-go."""
    anchor_weight: float = 0.3
    """w, weight of the squared distance to the actions of the policy begun from, in units of half
    the action range; 0 lets go of it. Without --from there is none to stay near."""
    anchor_final: float = 0.3
    """What it falls to, linearly, from the end of the warm-up to that of the run."""
    target_noise: float = 0.1
    """Standard deviation of the noise on the target's action, cut at 2.5 of them; in units of half
    the action range."""
    actor_every: int = 2
    """Updates of the critics between two of the actor."""


class DS4OnlineLearner:
    """Actor, critics and their targets; learns from batches of a replay.

    Args:
        policy: the actor.
        options: how to update.
        pretrained: whether the policy has learned already, and is one to stay near.
        returns_change: whether the replay may relabel returns-to-go.

    Raises:
        UserError: for an action space other than a Box, through which no gradient goes.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        options: DS4OnlineOptions,
        pretrained: bool,
        returns_change: bool = False,
    ):
        self.action_space = check_continuous(policy.action_space)
        self.options, self.updates, self.anchor = options, 0, options.anchor_weight
        usual = "states" if pretrained else "memory"
        self.policy = freeze(policy.eval(), usual if options.freeze == "auto" else options.freeze)
        self.returns_change = returns_change
        self.stored = self._stored_state()
        self.beginning = target_of(policy) if pretrained and options.anchor_weight else None
        self.critic = CriticEnsemble(
            policy,
            options.critics,
            options.critic_width,
            options.critic_layers,
            options.critic_norm,
            options.critic_return,
        )
        self.target_policy, self.target_critic = target_of(policy), target_of(self.critic)
        targets = [*self.target_policy.parameters(), *self.target_critic.parameters()]
        self._following: list[Tensor] = [*targets]
        self._followed: list[Tensor] = [*policy.parameters(), *self.critic.parameters()]
        self.actor_optimiser = adam(policy, options.actor_learning_rate)
        self.critic_optimiser = adam(self.critic, options.critic_learning_rate)

    @property
    def averaged_policy(self) -> SequencePolicy:
        """The policy that is evaluated and saved: the actor's target, which moves smoothly."""
        return self.target_policy

    @property
    def learning_rate(self) -> float:
        """The actor's."""
        return self.options.actor_learning_rate

    def set_progress(self, progress: float) -> None:
        """How much of the training after the warm-up is done, 0 to 1: sets the anchor's weight."""
        options = self.options
        change = options.anchor_final - options.anchor_weight
        self.anchor = options.anchor_weight + progress * change

    def update(
        self, batch: Transition, trains_actor: bool, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """One step of the critics, and of the actor where its turn is; detached scalars."""
        metrics = self._update_critic(batch, generator)
        self.updates += 1
        if trains_actor and self.updates % self.options.actor_every == 0:
            metrics |= self._update_actor(batch)
        if self.updates % self.options.target_every == 0:
            self._follow()
        metrics["state_age"] = self.updates - batch.born.float().mean()
        return metrics

    @torch.no_grad()
    def target(self, batch: Transition, generator: torch.Generator | None = None) -> Tensor:
        """y (B,)."""
        features = self.stored.step(self.target_policy, next_step(batch), batch.next_state)
        action = self._smoothed(self.target_policy.head.act(features), generator)
        values = self.target_critic(batch.next_observation, action, batch.next_return_to_go)
        return one_step_target(
            batch.reward, batch.terminated, values.amin(0), self.options.discount
        )

    def actor_loss(self, batch: Transition) -> tuple[Tensor, Tensor]:
        """What the actor minimises, and the mean value of its actions."""
        features = self.stored.step(self.policy, this_step(batch), batch.state)
        action = self.policy.head.act(features)
        values = self.critic(batch.observation, action, batch.return_to_go, members=1)[0]
        loss = -values.mean() / values.detach().abs().mean().clamp(min=1e-6)
        if self.beginning is not None:
            loss = loss + self.anchor * self._distance(self.beginning, batch, features)
        return loss, values.detach().mean()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but its batch."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        for name, part in self._parts().items():
            restore(part, state[name])
        self.updates = state["updates"]
        self.stored = self._stored_state()

    def _stored_state(self) -> StoredState:
        if not self.options.store_states:
            return NewState()
        return stored_state(self.policy, self.returns_change)

    def _parts(self) -> dict[str, Any]:
        parts = {
            "policy": self.policy,
            "critic": self.critic,
            "target_policy": self.target_policy,
            "target_critic": self.target_critic,
            "actor_optimiser": self.actor_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }
        return parts if self.beginning is None else parts | {"beginning": self.beginning}

    def _update_critic(
        self, batch: Transition, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        target = self.target(batch, generator)
        values = self.critic(batch.observation, batch.action, batch.return_to_go)  # (E, B)
        loss = squared_error(values, target)
        norm = take_own_step(self.critic_optimiser, loss, self.options.gradient_clip)
        return {"loss": loss.detach(), "critic_gradient_norm": norm, "value": target.mean()}

    def _update_actor(self, batch: Transition) -> dict[str, Tensor]:
        loss, value = self.actor_loss(batch)
        norm = take_own_step(self.actor_optimiser, loss, self.options.gradient_clip)
        return {"actor_loss": loss.detach(), "actor_gradient_norm": norm, "actor_value": value}

    @torch.no_grad()
    def _follow(self) -> None:
        torch._foreach_lerp_(self._following, self._followed, self.options.target_rate)

    def _distance(self, beginning: SequencePolicy, batch: Transition, features: Tensor) -> Tensor:
        with torch.no_grad():
            old = self.stored.step(beginning, this_step(batch), batch.state)
            action = beginning.head.act(old)
        return self.policy.head.loss(features, action).mean()

    def _smoothed(self, action: Tensor, generator: torch.Generator | None) -> Tensor:
        sigma = self.options.target_noise
        if not sigma:
            return action
        noise = torch.randn(action.shape, generator=generator) * sigma
        return disturbed(self.action_space, action, noise.clamp(-2.5 * sigma, 2.5 * sigma))


def check_continuous(space: spaces.Space) -> spaces.Box:
    """The action space. Raises UserError for one other than a Box."""
    if not isinstance(space, spaces.Box):
        raise UserError(f"ds4-online needs a Box action space, not {space}; take --algo ppo")
    return space
