"""Many environments of one kind, one a row: what a rollout needs of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_s4.envs.errors import SimulatorError
from decision_s4.envs.spaces import Tree, leaves

MakeEnv = Callable[[], gym.Env]


class Outcome(NamedTuple):
    """What one step gave the n rows that took it."""

    observation: Tree  # (n, …); a finished row's own last observation, never the next episode's
    reward: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool


LARGEST_REWARD = 1e9
"""No reward is larger but by a mistake."""


def check_outcome(outcome: Outcome, step: int) -> None:
    """Raises SimulatorError where an environment's rewards or observations are no numbers, or
    rewards so large that nothing is left beside them."""
    check_finite("rewards", outcome.reward, f"at environment step {step}")
    check_finite("observations", outcome.observation, f"at environment step {step}")
    if (largest := float(np.abs(outcome.reward).max(initial=0.0))) > LARGEST_REWARD:
        raise SimulatorError(
            f"the environment gave a reward of {largest:.3g} at environment step {step}; scale "
            "its rewards down"
        )


def check_finite(name: str, tree: Tree, when: str) -> None:
    """Raises SimulatorError where numbers that an environment gave are none."""
    for _, leaf in leaves(tree):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            raise SimulatorError(f"the environment gave {name} that are not finite {when}; mend it")


class Rows(Protocol):
    """Environments in rows, as a rollout needs them."""

    observation_space: spaces.Space
    action_space: spaces.Space

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        """Start an episode in each of `rows` (n,), None for all, each from its own seed:
        observations (n, …)."""
        ...

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        """Step the given rows, (n,) int, with actions (n, …); the others stay as they are."""
        ...

    def close(self) -> None:
        """Free the environments."""
        ...
