"""An agent that draws its actions."""

from typing import Any

import numpy as np
from gymnasium import spaces

from decision_s4.envs.timestep import State, TimeStep


class RandomAgent:
    """Draws actions uniformly from the space."""

    def __init__(self, space: spaces.Space, seed: int):
        self.space = space
        self.space.seed(seed)

    def initial_state(self, batch_size: int) -> State:
        """Nothing."""
        return ()

    def act(self, step: TimeStep, state: State, deterministic: bool = False) -> tuple[Any, State]:
        """Actions (B, …) in the action space's units."""
        return np.stack([self.space.sample() for _ in step.start]), state
