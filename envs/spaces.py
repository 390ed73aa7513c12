"""Values of any Gymnasium space as plain trees of arrays.

A leaf space (Box, Discrete, MultiDiscrete, MultiBinary; an image is a uint8 Box) is one array,
Dict is a dict of trees, and Tuple is a dict with the keys "0", "1", …
"""

from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
from gymnasium import spaces

from decision_s4.envs.errors import UserError

LeafSpace = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary

Tree = Any  # a leaf, or dict[str, Tree]


def map_tree(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """A tree of `fn(leaf, …)`: the leaf of `tree` and those at the same place in `others`."""
    if isinstance(tree, dict):
        return {k: map_tree(fn, v, *(other[k] for other in others)) for k, v in tree.items()}
    return fn(tree, *others)


def leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with its name: "hand/0" is the first part of a Tuple under the key "hand"."""
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{name}/{key}" if name else key)


def leaf_spaces(space: spaces.Space) -> Tree:
    """The tree of a space's leaf spaces. Raises UserError for a space that no array holds."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        if not len(space):
            raise UserError(f"space {space} has no parts; use a space with at least one")
        return {key: leaf_spaces(part) for key, part in _parts(space)}
    if not isinstance(space, LeafSpace):
        kinds = ", ".join(kind.__name__ for kind in get_args(LeafSpace))
        raise UserError(f"space {space} is not supported; use {kinds}, or Dict and Tuple of these")
    return space


def leaf_shape(space: LeafSpace) -> tuple[int, ...]:
    """Of one value; Gymnasium's types let a Discrete have none."""
    return space.shape or ()


def space_tree(space: spaces.Space, value: Any) -> Tree:
    """One value of `space`, or a batch of values with leading axes, as a tree of arrays."""
    if isinstance(space, spaces.Dict):
        return {key: space_tree(part, value[key]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return {key: space_tree(part, value[int(key)]) for key, part in _parts(space)}
    return np.asarray(value)


def as_space(space: LeafSpace, values: np.ndarray) -> np.ndarray:
    """A batch of values (n, …) of a leaf space, in its type. Raises ValueError where they are not.

    A Box's bounds are not checked: simulators pass them, by rounding at least.
    """
    if values.shape[1:] != leaf_shape(space):
        raise ValueError(f"shape {values.shape[1:]} instead of {leaf_shape(space)}")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{values.dtype} instead of numbers")
    exact = np.can_cast(values.dtype, space.dtype, "same_kind")
    with np.errstate(invalid="ignore"):
        cast = values.astype(space.dtype, copy=False)
    if not exact and not np.array_equal(cast, values):
        raise ValueError(f"{values.dtype} instead of {space.dtype}")
    first, count = _range(space)
    if count is not None and not ((cast >= first) & (cast < first + count)).all():
        raise ValueError(f"{cast[0]} instead of one of {space}")
    return cast


def _range(space: LeafSpace) -> tuple[Any, Any]:
    """The first of a space's whole numbers and how many there are; None of a Box."""
    match space:
        case spaces.Discrete():
            return space.start, space.n
        case spaces.MultiDiscrete():
            return space.start, space.nvec
        case spaces.MultiBinary():
            return 0, 2
    return 0, None


def _parts(space: spaces.Dict | spaces.Tuple) -> Iterator[tuple[str, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        yield from space.items()
    else:
        yield from ((str(i), part) for i, part in enumerate(space))
