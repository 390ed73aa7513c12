"""Whether rewards are of a size that networks can learn from."""

import numpy as np

from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import Trajectories

LARGEST_INPUT = 1e6
"""Numbers beyond this, either way, drown all else that networks of float32 read or predict."""


def check_returns(data: Trajectories, scale: float) -> None:
    """Raise UserError where returns-to-go, divided by `scale`, are too large to be an input."""
    largest = float(np.abs(data.returns_to_go()).max())
    if not largest / scale <= LARGEST_INPUT:
        raise UserError(
            f"dataset '{data.name}': returns reach {largest:.3g}, which is "
            f"{largest / scale:.3g} in units of --return-scale {scale:g}; mend the rewards, or "
            f"give a --return-scale near {largest:.0e}"
        )


def check_values(data: Trajectories, scale: float = 1.0) -> None:
    """Raise UserError where rewards, times `scale`, are too large to learn values of."""
    largest = float(np.abs(data.rewards).max())
    if not largest * scale <= LARGEST_INPUT:
        raise UserError(
            f"dataset '{data.name}': rewards reach {largest:.3g}, too large to learn values of; "
            f"mend them, or divide all by {largest:.0e}"
        )
