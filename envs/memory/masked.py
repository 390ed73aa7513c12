"""Gymnasium environments of which some numbers are hidden, such as all velocities."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# Which numbers of the observation are positions, by Gymnasium's id.
POSITIONS: dict[str, tuple[int, ...]] = {
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
    "MountainCarContinuous-v0": (0,),
    "Hopper-v5": tuple(range(5)),
    "HalfCheetah-v5": tuple(range(8)),
    "Walker2d-v5": tuple(range(8)),
    "Ant-v5": tuple(range(13)),
}


class Masked(gym.ObservationWrapper):
    """Shows the numbers `kept` of a flat observation, with Gaussian noise of deviation `noise`."""

    def __init__(self, env: gym.Env, kept: Sequence[int], noise: float = 0.0):
        super().__init__(env)
        self.kept, self.noise = list(kept), noise
        space = env.observation_space
        assert isinstance(space, spaces.Box), "flat"
        low, high = space.low[self.kept], space.high[self.kept]
        if noise:
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        seen = observation[self.kept]
        if self.noise:
            seen = seen + self.noise * self.np_random.standard_normal(len(seen))
        return seen.astype(self.observation_space.dtype)


def without_velocity(base: str, noise: float = 0.0, **options: Any) -> gym.Env:
    """The environment `base`, of which only positions are seen."""
    return Masked(gym.make(base, disable_env_checker=True, **options), POSITIONS[base], noise)
