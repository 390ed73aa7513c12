"""What an actor-critic lived through in its environments, ready to learn from.

Shapes: N rows, T steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.actor_critic import ActorCritic
from decision_s4.agents.backbones import State
from decision_s4.envs.rows import Outcome
from decision_s4.envs.spaces import Tree
from decision_s4.envs.stream import Stream
from decision_s4.envs.timestep import TimeStep


class Rollout(NamedTuple):
    """T steps of N rows, in which episodes follow on one another."""

    observation: Tree  # (N, T, …)
    previous_action: Tree  # (N, T, …) as the environment took it
    previous_reward: Tensor  # (N, T)
    start: Tensor  # (N, T) bool, first step of an episode
    action: Tensor  # (N, T, …) as sampled, before any clipping
    reward: np.ndarray  # (N, T) float64
    ended: np.ndarray  # (N, T) bool, terminated or truncated
    cut_value: np.ndarray  # (N, T) V of an episode's last observation where truncated, else 0
    last_value: np.ndarray  # (N,) V of what is seen after the last step
    state: State  # before the first step
    episodes: list[tuple[float, int]]  # (return, length) of those that ended


class _Step(NamedTuple):
    """What N rows lived through in one step."""

    seen: TimeStep
    action: Tensor
    outcome: Outcome
    cut_value: np.ndarray
    episodes: list[tuple[float, int]]


class Collector:
    """Acts in a stream of episodes, on from where it stopped."""

    def __init__(self, stream: Stream, policy: ActorCritic):
        self.stream = stream
        self.state = policy.initial_state(len(stream.all))

    @torch.no_grad()
    def collect(self, policy: ActorCritic, steps: int) -> Rollout:
        """`steps` steps of every row with actions sampled from `policy`."""
        actor, first = Actor(policy), tree_map(torch.clone, self.state)
        lived = [self._step(actor, policy) for _ in range(steps)]
        last_value = self._value(policy, self.stream.all)
        self.state = tree_map(torch.clone, self.state)  # an inference tensor has no gradient
        return _joined(lived, last_value, first)

    def _step(self, actor: Actor, policy: ActorCritic) -> _Step:
        """Act once in every row; rows whose episode ended begin another."""
        seen = self.stream.now()
        action, self.state = actor.act(seen, self.state, False)
        outcome = self.stream.step(action)
        cut_value = np.zeros(len(self.stream.all), np.float32)
        cut = np.flatnonzero(outcome.truncated & ~outcome.terminated)
        if len(cut):
            cut_value[cut] = self._value(policy, cut)
        return _Step(seen, action, outcome, cut_value, self.stream.renew())

    def _value(self, policy: ActorCritic, rows: np.ndarray) -> np.ndarray:
        """V of what `rows` (n,) see now; the state stays."""
        device = policy.reward_scale.device
        index = torch.from_numpy(rows).to(device)
        now = tree_map(lambda leaf: leaf.to(device), self.stream.now(rows))
        features, _ = policy.step(now, tree_map(lambda leaf: leaf[index], self.state))
        return policy.value_of(features).cpu().numpy()


def _joined(lived: Sequence[_Step], last_value: np.ndarray, first: State) -> Rollout:
    """The steps side by side."""
    outcomes = [step.outcome for step in lived]
    seen = tree_map(lambda *leaves: torch.stack(leaves, 1), *(step.seen for step in lived))
    return Rollout(
        seen.observation,
        seen.previous_action,
        seen.previous_reward,
        seen.start,
        action=torch.stack([step.action for step in lived], 1),
        reward=np.stack([outcome.reward for outcome in outcomes], 1),
        ended=np.stack([outcome.terminated | outcome.truncated for outcome in outcomes], 1),
        cut_value=np.stack([step.cut_value for step in lived], 1),
        last_value=last_value,
        state=first,
        episodes=[episode for step in lived for episode in step.episodes],
    )
