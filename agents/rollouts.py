"""What an actor-critic lived through in its environments, ready to learn from.

Shapes: N rows, T steps.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.actor_critic import ActorCritic
from decision_s4.agents.backbones import State
from decision_s4.envs.spaces import Tree
from decision_s4.envs.stream import Stream


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


class Collector:
    """Acts in a stream of episodes, on from where it stopped."""

    def __init__(self, stream: Stream, policy: ActorCritic):
        self.stream = stream
        self.state = policy.initial_state(len(stream.all))

    @torch.no_grad()
    def collect(self, policy: ActorCritic, steps: int) -> Rollout:
        """`steps` steps of every row with actions sampled from `policy`."""
        actor, stream, first = Actor(policy), self.stream, tree_map(torch.clone, self.state)
        seen, actions, outcomes, episodes = [], [], [], []
        cut_value = np.zeros((len(stream.all), steps), np.float32)
        for t in range(steps):
            now = stream.now()
            action, self.state = actor.act(now, self.state, False)
            outcome = stream.step(action)
            seen.append(now)
            actions.append(action)
            outcomes.append(outcome)
            cut = np.flatnonzero(outcome.truncated & ~outcome.terminated)
            if len(cut):
                cut_value[cut, t] = self._value(policy, cut)
            episodes += stream.renew()
        last_value = self._value(policy, stream.all)
        self.state = tree_map(torch.clone, self.state)  # an inference tensor has no gradient
        stacked = tree_map(lambda *leaves: torch.stack(leaves, 1), *seen)
        ended = [outcome.terminated | outcome.truncated for outcome in outcomes]
        return Rollout(
            stacked.observation,
            stacked.previous_action,
            stacked.previous_reward,
            stacked.start,
            torch.stack(actions, 1),
            np.stack([outcome.reward for outcome in outcomes], 1),
            np.stack(ended, 1),
            cut_value,
            last_value,
            first,
            episodes,
        )

    def _value(self, policy: ActorCritic, rows: np.ndarray) -> np.ndarray:
        """V of what `rows` (n,) see now; the state stays."""
        device = policy.reward_scale.device
        index = torch.from_numpy(rows).to(device)
        now = tree_map(lambda leaf: leaf.to(device), self.stream.now(rows))
        features, _ = policy.step(now, tree_map(lambda leaf: leaf[index], self.state))
        return policy.value_of(features).cpu().numpy()
