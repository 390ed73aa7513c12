"""Tasks whose episodes are stepped as arrays, one row an episode; and one row as a Gymnasium env.

All that chance decides about an episode is drawn when it begins, from a generator of its own: it
depends on its seed alone, not on its neighbours. Shapes: N rows, n of them in a call.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from decision_s4.envs.errors import UserError
from decision_s4.envs.rows import Outcome


def check_size(name: str, value: int, least: int, most: int = 10**6) -> None:
    """Raise UserError for a size of a task that makes no episodes."""
    if type(value) is not int or not least <= value <= most:
        raise UserError(f"{name} is {value!r}; use a whole number from {least} to {most}")


class Batch(ABC):
    """`count` episodes of one task."""

    observation_space: spaces.Space
    action_space: spaces.Space
    max_steps: int | None = None
    """Steps after which an episode is cut short, as truncated."""

    def __init__(self, count: int):
        self.time = np.zeros(count, np.int64)  # (N,) steps taken

    def reset(self, rows: np.ndarray, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Begin an episode in each of `rows` (n,): observations (n, …)."""
        self.time[rows] = 0
        for row, generator in zip(rows, generators, strict=True):
            self.draw(row, generator)
        return self.observe(rows)

    def step(self, rows: np.ndarray, action: np.ndarray) -> Outcome:
        """Step `rows` (n,) with actions (n, …)."""
        reward, terminated = self.advance(rows, action)
        self.time[rows] += 1
        late = np.zeros(len(rows), bool)
        if self.max_steps is not None:
            late = self.time[rows] >= self.max_steps
        return Outcome(self.observe(rows), reward, terminated, late)

    @abstractmethod
    def draw(self, row: int, generator: np.random.Generator) -> None:
        """Decide all that chance decides about the next episode of one row."""

    @abstractmethod
    def observe(self, rows: np.ndarray) -> np.ndarray:
        """What the rows see now, (n, …)."""

    @abstractmethod
    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take one step: reward (n,) float64, terminated (n,) bool. `self.time` is as before."""


class BatchRows:
    """A Batch as the rows of a rollout (see rows.py)."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.observation_space, self.action_space = batch.observation_space, batch.action_space

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> np.ndarray:
        rows = np.arange(len(self.batch.time)) if rows is None else rows
        return self.batch.reset(rows, [seeding.np_random(int(seed))[0] for seed in seeds])

    def step(self, rows: np.ndarray, action: np.ndarray) -> Outcome:
        return self.batch.step(rows, action)

    def close(self) -> None:
        """Nothing is held."""


class BatchEnv(gym.Env):
    """One episode at a time of a Batch."""

    def __init__(self, batch: type[Batch], render_mode: str | None = None, **options: Any):
        self.batch = batch(1, **options)
        self.observation_space = self.batch.observation_space
        self.action_space = self.batch.action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._value(self.batch.reset(ROW, [self.np_random])), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, *rest = self.batch.step(ROW, np.asarray(action)[None])
        reward, terminated, truncated = (value[0].item() for value in rest)
        return self._value(seen), reward, terminated, truncated, {}

    def _value(self, seen: np.ndarray) -> Any:
        return np.int64(seen[0]) if isinstance(self.observation_space, spaces.Discrete) else seen[0]


ROW = np.zeros(1, np.int64)
