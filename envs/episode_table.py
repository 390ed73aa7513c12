"""The books of a rollout: where each of N episodes stands."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from gymnasium import spaces

from decision_s4.envs.rows import Outcome, Rows
from decision_s4.envs.spaces import LeafSpace, Tree, leaf_shape, leaf_spaces, map_tree
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.timestep import TimeStep


@dataclass
class EpisodeTable:
    """N episodes under way, as arrays with one row an episode."""

    observation: Tree  # (N, …)
    previous_action: Tree  # (N, …)
    previous_reward: np.ndarray  # (N,)
    target: np.ndarray  # (N,)
    returns: np.ndarray  # (N,) so far
    lengths: np.ndarray  # (N,) so far
    terminated: np.ndarray  # (N,)
    truncated: np.ndarray  # (N,)

    @classmethod
    def begin(
        cls, rows: Rows, target_returns: Sequence[float | None], seeds: Sequence[int]
    ) -> Self:
        """Reset every row and start its books."""
        return cls.of(rows.reset(seeds), rows.action_space, target_returns)

    @classmethod
    def of(
        cls,
        observation: Tree,
        action_space: spaces.Space,
        target_returns: Sequence[float | None],
    ) -> Self:
        """The books of episodes whose first observations (N, …) these are."""
        count = len(target_returns)
        zeros = functools.partial(np.zeros, count)

        def no_action(leaf: LeafSpace) -> np.ndarray:
            return np.zeros((count, *leaf_shape(leaf)), leaf.dtype)

        return cls(
            observation=observation,
            previous_action=map_tree(no_action, leaf_spaces(action_space)),
            previous_reward=zeros(),
            target=np.array([0.0 if target is None else target for target in target_returns]),
            returns=zeros(),
            lengths=zeros(np.int64),
            terminated=zeros(bool),
            truncated=zeros(bool),
        )

    @property
    def running(self) -> np.ndarray:
        """(N,) bool."""
        return ~(self.terminated | self.truncated)

    def time_step(self, batch: np.ndarray) -> TimeStep:
        """What the rows in `batch` see now; indexing copies, so an agent may keep it."""
        return TimeStep(
            map_tree(lambda leaf: as_tensor(leaf[batch]), self.observation),
            map_tree(lambda leaf: as_tensor(leaf[batch]), self.previous_action),
            as_tensor(self.previous_reward[batch]),
            as_tensor((self.target - self.returns)[batch]),
            torch.from_numpy(self.lengths[batch] == 0),
            torch.from_numpy(self.terminated[batch]),
            torch.from_numpy(self.truncated[batch]),
        )

    def renew(self, rows: np.ndarray, observation: Tree) -> None:
        """Start the books of a new episode in the given rows; targets stay."""
        map_tree(lambda ours, new: _assign(ours, rows, new), self.observation, observation)
        map_tree(lambda ours: _assign(ours, rows, np.zeros_like(ours[rows])), self.previous_action)
        for book in (self.previous_reward, self.returns, self.lengths):
            book[rows] = 0
        self.terminated[rows] = self.truncated[rows] = False

    def update(self, rows: np.ndarray, action: Tree, outcome: Outcome) -> None:
        """Enter the step that the given rows took."""
        map_tree(lambda ours, new: _assign(ours, rows, new), self.observation, outcome.observation)
        map_tree(lambda ours, new: _assign(ours, rows, new), self.previous_action, action)
        self.previous_reward[rows] = outcome.reward
        self.returns[rows] += outcome.reward
        self.lengths[rows] += 1
        self.terminated[rows] = outcome.terminated
        self.truncated[rows] = outcome.truncated


def _assign(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
    array[rows] = values
