"""MiniGrid's observations as numbers: what lies in a cell is a kind, not a brightness.

MiniGrid shows a grid (7, 7, 3) of bytes that name object, colour and state of each cell, which way
the agent faces, and a sentence, the mission. Here the grid is a MultiDiscrete and the mission its
number among those that the environment can give; one that never changes is left out.
"""

from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_s4.envs.errors import UserError

KINDS = np.array([11, 6, 4])  # objects, colours, states or directions that MiniGrid has


class Symbols(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """A MiniGrid environment of which everything seen is numbers.

    Raises UserError where the missions are sentences without end, as BabyAI's are.
    """

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        assert isinstance(env.observation_space, spaces.Dict), "MiniGrid's always is"
        parts = dict(env.observation_space.spaces)
        self.numbers = {text: i for i, text in enumerate(_missions(parts.pop("mission"), env))}
        parts["image"] = spaces.MultiDiscrete(np.broadcast_to(KINDS, parts["image"].shape or ()))
        if len(self.numbers) > 1:
            parts["mission"] = spaces.Discrete(len(self.numbers))
        self.observation_space = spaces.Dict(parts)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        seen = dict(observation, image=observation["image"].astype(np.int64))
        mission = seen.pop("mission")
        if len(self.numbers) > 1:
            seen["mission"] = np.int64(self.numbers[mission])
        return seen


def readable(env: gym.Env) -> gym.Env:
    """The environment itself, or Symbols of one of MiniGrid's."""
    space = env.observation_space
    theirs = str(env.spec.entry_point).startswith("minigrid.") if env.spec else False
    return Symbols(env) if theirs and isinstance(space, spaces.Dict) else env


def _missions(space: Any, env: gym.Env) -> list[str]:
    """Every mission that the environment can give, in order; `space` is MiniGrid's own kind."""
    if type(space).__name__ != "MissionSpace":  # BabyAI's is a kind of it
        raise UserError(
            f"environment '{env.spec.id if env.spec else env}' tells its mission in sentences of "
            "any kind, which no encoder reads; use one of MiniGrid's own, such as "
            "MiniGrid-MemoryS7-v0"
        )
    words = space.ordered_placeholders or []
    return sorted({space.mission_func(*chosen) for chosen in product(*words)})
