"""From what an agent answers to what an environment takes."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import LeafSpace, Tree, leaf_shape, leaf_spaces, map_tree


def environment_action(space: spaces.Space, action: Tree, alive: np.ndarray, time: int) -> Tree:
    """The alive rows' actions (n, …) as arrays of the space's types, clipped to a Box's bounds.

    In a Box of whole numbers they are rounded to the nearest. `action` holds tensors or arrays
    (B, …); `alive` is (B,) bool. Raises UserError for a non-finite action, ValueError for one of
    another shape or a fraction where a count is due.
    """

    def convert(leaf: LeafSpace, value: Any) -> np.ndarray:
        value, shape = _array(value), (len(alive), *leaf_shape(leaf))
        if value.shape != shape:
            raise ValueError(f"act gave {value.shape}, not (B, …) = {shape}")
        value = value[alive]
        if not np.isfinite(value).all():
            raise UserError(
                f"the policy produced a non-finite action at step {time}; its weights or inputs "
                "hold NaN or infinity: take an earlier checkpoint"
            )
        if isinstance(leaf, spaces.Box):
            value = np.clip(value, leaf.low, leaf.high)
            if np.issubdtype(leaf.dtype, np.integer):
                value = np.rint(value)
        elif not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"act gave {value.dtype} for {leaf}; give integers")
        return value.astype(leaf.dtype)

    return map_tree(convert, leaf_spaces(space), action)


def disturbed(space: spaces.Box, action: Tensor, noise: Tensor) -> Tensor:
    """Actions (B, …) plus noise in units of half the action range (1 where unbounded), clipped."""
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    bounded = torch.isfinite(low) & torch.isfinite(high)
    reach = torch.where(bounded, (high - low) / 2, 1.0)
    return (action + reach * noise).clamp(low, high).to(action.dtype)


def _array(value: Any) -> np.ndarray:
    if not torch.is_tensor(value):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def space_value(space: spaces.Space, tree: Tree) -> Any:
    """One value of `space` from its tree; the inverse of `space_tree`."""
    if isinstance(space, spaces.Dict):
        return {key: space_value(part, tree[key]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(space_value(part, tree[str(i)]) for i, part in enumerate(space))
    return tree
