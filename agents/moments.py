"""Running mean and deviation of a stream of values."""

from typing import Any

import numpy as np
import torch

from decision_s4.envs.spaces import Tree, map_tree


class Moments:
    """Of each number of an array, over all arrays seen: Chan, Golub and LeVeque (1979)."""

    def __init__(self, shape: tuple[int, ...] = ()):
        self.count, self.mean, self.squares = 0.0, np.zeros(shape), np.zeros(shape)

    def add(self, values: np.ndarray) -> None:
        """Take in (n, *shape) values."""
        count = len(values)
        mean = values.mean(0, dtype=np.float64)
        delta, total = mean - self.mean, self.count + count
        self.squares += ((values - mean) ** 2).sum(0) + delta**2 * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = total

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation; 1 where nothing has varied."""
        variance = self.squares / max(self.count, 1.0)
        return np.where(variance > 1e-12, np.sqrt(variance), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        arrays = {"mean": self.mean, "squares": self.squares}
        return {"count": self.count} | {k: torch.tensor(v) for k, v in arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.count = state["count"]
        self.mean, self.squares = (state[name].numpy().copy() for name in ("mean", "squares"))


def moments_of(space_tree: Tree) -> Tree:
    """One Moments for each leaf space."""
    return map_tree(lambda leaf: Moments(leaf.shape), space_tree)
