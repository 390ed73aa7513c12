"""Logged trajectories: flat arrays plus episode lengths.

N steps in E episodes. T + 1 observations belong to an episode of T actions, so there are N + E
observation rows: step t of episode e acts on row t + e, and row t + e + 1 is what it led to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from decision_s4.envs.spaces import Tree, map_tree

CHUNK_STEPS = 1 << 16
SMALLEST_STD = 1e-6


class Episode(NamedTuple):
    """One episode of T steps: T + 1 observations, T of everything else."""

    observations: Tree
    actions: Tree
    rewards: np.ndarray  # (T,)
    terminations: np.ndarray  # (T,) bool
    truncations: np.ndarray  # (T,) bool


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a dataset says of itself.

    `env_id` is a Gymnasium id to be looked up in the registry (it may not be registered here);
    nothing named by a data file is imported. `reference_scores` are the (random, expert) returns
    in the dataset's metadata. `final_observation_known` is False where the file lacks the
    observation after an episode's last action: that row then repeats the one before.
    """

    name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    reference_scores: tuple[float, float] | None = None
    final_observation_known: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories(DatasetInfo):
    """Whole episodes laid end to end, as (memory-mapped, read-only) arrays or trees of them.

    Observations that are images may be `Frames`, which decode the rows that they are indexed by.
    """

    observations: Tree  # (N + E, …)
    actions: Tree  # (N, …)
    rewards: np.ndarray  # (N,) float64
    terminations: np.ndarray  # (N,) bool
    truncations: np.ndarray  # (N,) bool
    lengths: np.ndarray  # (E,) int64, each at least 1

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.rewards)

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @cached_property
    def action_offsets(self) -> np.ndarray:
        """(E + 1,) int64: episode i holds the steps from action_offsets[i] to [i + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def returns(self) -> np.ndarray:
        """(E,) float64: undiscounted sum of each episode's rewards."""
        return np.add.reduceat(np.asarray(self.rewards, np.float64), self.action_offsets[:-1])

    def best_episodes(self, fraction: float) -> np.ndarray:
        """Numbers, ascending, of the share `fraction` of episodes with the highest returns.

        At least one; of equal returns the earlier episode goes first.
        """
        count = max(1, round(fraction * self.num_episodes))
        return np.sort(np.argsort(-self.returns, kind="stable")[:count])

    def observation_index(self, step: np.ndarray | int) -> np.ndarray:
        """Row of the observation on which each step acted: the step plus its episode's number."""
        return step + np.searchsorted(self.action_offsets, step, side="right") - 1

    def episode(self, i: int) -> Episode:
        """Episode `i` as views. Raises IndexError outside 0 … E - 1."""
        if not 0 <= i < self.num_episodes:
            raise IndexError(f"episode {i} is outside 0 … {self.num_episodes - 1}")
        first, last = self.action_offsets[i : i + 2]
        steps = slice(first, last)
        return Episode(
            map_tree(lambda leaf: leaf[first + i : last + i + 1], self.observations),
            map_tree(lambda leaf: leaf[steps], self.actions),
            self.rewards[steps],
            self.terminations[steps],
            self.truncations[steps],
        )

    def returns_to_go(self) -> np.ndarray:
        """(N,) float64: R_t = r_t + r_{t+1} + … up to the episode's last step, undiscounted."""
        rewards = np.asarray(self.rewards, np.float64)
        total = np.cumsum(rewards)
        at_end = np.repeat(total[self.action_offsets[1:] - 1], self.lengths)
        return at_end - total + rewards

    def observation_statistics(self) -> tuple[Tree, Tree]:
        """Mean and standard deviation (trees of float64) over the N observations acted on.

        Read in chunks, so memory stays bounded. A feature whose deviation is below 1e-6 gets 1
        (it is centred, not blown up); leaves that are not floating point get mean 0 and std 1.
        """
        pairs = map_tree(self._leaf_statistics, self.observations)
        return map_tree(lambda pair: pair[0], pairs), map_tree(lambda pair: pair[1], pairs)

    def _leaf_statistics(self, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape[1:]), np.ones(leaf.shape[1:])
        mean = sum(rows.sum(0) for rows in self._acted_on(leaf)) / self.num_steps
        square = sum(((rows - mean) ** 2).sum(0) for rows in self._acted_on(leaf))
        std = np.sqrt(square / self.num_steps)
        return mean, np.where(std < SMALLEST_STD, 1.0, std)

    def _acted_on(self, leaf: np.ndarray) -> Iterator[np.ndarray]:
        for first in range(0, self.num_steps, CHUNK_STEPS):
            steps = np.arange(first, min(first + CHUNK_STEPS, self.num_steps))
            yield leaf[self.observation_index(steps)].astype(np.float64)

    def summary(self) -> str:
        """One line for a person: episodes, steps, returns, environment."""
        returns = self.returns
        return (
            f"{self.name}: {self.num_episodes:,} episodes, {self.num_steps:,} steps, "
            f"return {returns.mean():.1f} ± {returns.std():.1f} "
            f"({returns.min():.1f} … {returns.max():.1f}), environment {self.env_id or 'unknown'}"
        )
