"""What samplers of batches share: where they stand, and how they go on from there."""

from collections.abc import Mapping

import numpy as np

from decision_s4.envs.errors import UserError


class NumberedBatches:
    """Endless batches, of which number i is a function of (seed, i)."""

    def __init__(self, seed: int):
        check_at_least("seed", seed, 0)
        self.seed, self.batch = seed, 0

    def next_generator(self) -> np.random.Generator:
        """What the next batch is drawn with."""
        generator = np.random.default_rng([self.seed, self.batch])
        self.batch += 1
        return generator

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: the next batch after loading this is the one due now."""
        return {"seed": self.seed, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state_dict. Raises UserError if it is none of this sampler's."""
        check_keys(state, self.state_dict())
        self.seed, self.batch = state["seed"], state["batch"]


def check_keys(state: Mapping[str, int], own: Mapping[str, int]) -> None:
    """Raise UserError for a sampler's state whose keys are not those of its `own`."""
    if set(state) != set(own):
        raise UserError(f"sampler state has the keys {sorted(state)}; use a state_dict()")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise UserError for a `value` below `least`."""
    if value < least:
        raise UserError(f"{name} is {value}; use {least} or more")
