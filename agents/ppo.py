"""Proximal policy optimisation over sequences: Schulman et al., arXiv 1707.06347.

    maximise  E[ min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) ] − c_v E[(V − G)²] + c_e E[H(π)],  ρ = π / π_old

A rollout's rows are read whole, in one parallel pass from the state that they began with; the
state starts anew inside it where episodes do. Old probabilities and values are those of one such
pass before the first update. Shapes: N rows, T steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from decision_s4.agents.actor_critic import ActorCritic
from decision_s4.agents.backbones import State
from decision_s4.agents.optimisers import apart_from_recurrence
from decision_s4.agents.returns import generalised_advantages, next_values
from decision_s4.agents.rollouts import Rollout

EXPLODED = 1e8  # values in units of the rewards' scale: no training comes back from there


@dataclass(frozen=True)
class PPOOptions:
    """How PPO learns from a rollout."""

    learning_rate: float = 1e-3
    """Of Adam, at the beginning."""
    recurrence_learning_rate: float = 1e-3
    """For poles, time steps and their like: this rate at most."""
    schedule: Literal["linear", "constant"] = "linear"
    """The rate falls linearly to 0 at the last step, or is constant."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatches: int = 4
    """Updates a pass; each reads a share of the rows, whole."""
    discount: float = 0.99
    """Discount γ a step."""
    trace: float = 0.95
    """Decay λ of generalised advantages."""
    clip: float = 0.2
    """How far a probability's ratio may go, ε."""
    value_coefficient: float = 0.5
    """Weight of the values' squared error."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy."""
    gradient_clip: float = 0.5
    """Largest norm of all gradients together; longer ones are shortened to it."""
    target_kl: float = 0.05
    """A rollout's passes stop where the policy has moved by more than this, in nats; 0: never."""


class Targets(NamedTuple):
    """What a rollout's steps are to become, each (N, T)."""

    log_prob: Tensor  # of the action taken, under the policy that took it
    value: Tensor  # by the critic of then
    advantage: Tensor
    returns: Tensor


class PPOLearner:
    """Improves an actor-critic, one rollout at a time."""

    def __init__(self, policy: ActorCritic, options: PPOOptions):
        self.policy, self.options = policy, options
        self.optimiser = torch.optim.Adam(_groups(policy, options), eps=1e-5, fused=True)
        self.first_rates = [group["lr"] for group in self.optimiser.param_groups]

    def set_progress(self, share: float) -> None:
        """`share` of the training is done, 0 to 1: the schedule's rate for what follows."""
        factor = 1 - share if self.options.schedule == "linear" else 1.0
        for group, rate in zip(self.optimiser.param_groups, self.first_rates, strict=True):
            group["lr"] = rate * factor

    @property
    def learning_rate(self) -> float:
        """The rate now, the recurrence's apart."""
        return self.optimiser.param_groups[0]["lr"]

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """All passes over one rollout, its rewards scaled already; returns detached scalars."""
        targets = self.targets(rollout)
        told: list[dict[str, Tensor]] = []
        for rows in self._minibatches(len(rollout.reward)):
            told.append(self._step(_rows(rollout, rows), tree_map(lambda x: x[rows], targets)))  # noqa: B023
            if 0 < self.options.target_kl < told[-1]["approx_kl"]:
                break
        means = {name: torch.stack([each[name] for each in told]).mean() for name in told[0]}
        left, all_of_it = (
            x.var(correction=0) for x in (targets.returns - targets.value, targets.returns)
        )
        left = left / all_of_it.clamp(min=1e-12)
        return means | {"explained_variance": 1 - left, "updates": torch.tensor(float(len(told)))}

    @torch.no_grad()
    def targets(self, rollout: Rollout) -> Targets:
        """Advantages and returns, by the policy as it is."""
        features, _ = self.policy(rollout, rollout.state)
        log_prob = self.policy.head.log_prob(features, rollout.action)
        value = self.policy.value_of(features)
        held = value.cpu().numpy().astype(np.float64)
        after = next_values(held, rollout.last_value, rollout.cut_value, rollout.ended)
        options = self.options
        estimates = generalised_advantages(
            rollout.reward, held, after, rollout.ended, options.discount, options.trace
        )
        advantage = torch.from_numpy(estimates).to(value)
        return Targets(log_prob, value, advantage, advantage + value)

    def _minibatches(self, count: int) -> Iterator[Tensor]:
        share = -(-count // self.options.minibatches)
        for _ in range(self.options.epochs):
            yield from torch.randperm(count).split(share)

    def _step(self, rollout: Rollout, targets: Targets) -> dict[str, Tensor]:
        loss, told = self._loss(rollout, targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.options.gradient_clip)
        self.optimiser.step()
        return {"loss": loss.detach()} | told | {"gradient_norm": norm.detach()}

    def _loss(self, rollout: Rollout, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and detached scalars of its parts."""
        options, head = self.options, self.policy.head
        features, _ = self.policy(rollout, rollout.state)
        log_ratio = head.log_prob(features, rollout.action) - targets.log_prob
        gain = clipped_gain(log_ratio.exp(), targets.advantage, options.clip)
        error = F.mse_loss(self.policy.value_of(features), targets.returns)
        entropy = head.entropy(features).mean()
        loss = options.value_coefficient * error - gain - options.entropy_coefficient * entropy
        return loss, {
            "policy_gradient_loss": -gain.detach(),
            "value_loss": error.detach(),
            "entropy_loss": -entropy.detach(),
        } | moved(log_ratio.detach(), options.clip)

    def state_dict(self) -> dict[str, Any]:
        """Everything of the learner that the next update depends on."""
        return {"policy": self.policy.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])


def clipped_gain(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """E[ min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) ] of ratios and advantages (N, T), A standardised.

    A single advantage has no deviation and stays as it is.
    """
    if advantage.numel() > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(ratio * advantage, clipped * advantage).mean()


def moved(log_ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """How far probabilities have moved: an estimate of the divergence, and how many are clipped."""
    ratio = log_ratio.exp()
    return {
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
    }


def _rows(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some rows of what a pass reads."""

    def take(tree: Any) -> Any:
        return tree_map(lambda leaf: leaf[rows.to(leaf.device)], tree)

    state: State = take(rollout.state)
    names = ("observation", "previous_action", "previous_reward", "start", "action")
    return rollout._replace(**{n: take(getattr(rollout, n)) for n in names}, state=state)


def _groups(policy: ActorCritic, options: PPOOptions) -> list[dict[str, Any]]:
    """The recurrence has a rate of its own."""
    rest, recurrence = apart_from_recurrence(policy)
    slow = min(options.learning_rate, options.recurrence_learning_rate)
    pairs = [(rest, options.learning_rate), (recurrence, slow)]
    return [{"params": params, "lr": lr} for params, lr in pairs if params]
