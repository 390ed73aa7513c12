"""Whether an episode read from a file is sound; the message names the place and the fix."""

import numpy as np
from gymnasium import spaces

from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import LeafSpace, Tree, leaf_spaces, leaves
from decision_s4.envs.trajectories import DatasetInfo, Episode

REPAIR = "drop this episode or record it again"


def checked(episode: Episode, number: int, info: DatasetInfo) -> Episode:
    """`episode` if its lengths, shapes, dtypes and values agree with the spaces, else UserError."""
    where = f"dataset '{info.name}', episode {number}"
    steps = len(episode.rewards)
    if steps == 0:
        raise UserError(f"{where}: it has no steps; {REPAIR}")
    for name in ("rewards", "terminations", "truncations"):
        _check_flat(getattr(episode, name), steps, f"{where}: {name}")
    _check_finite(episode.rewards, f"{where}: rewards")
    observations, actions = episode.observations, episode.actions
    one_more = "one more than rewards"
    _check_tree(info.observation_space, observations, steps + 1, f"{where}: observations", one_more)
    _check_tree(info.action_space, actions, steps, f"{where}: actions", "as many as rewards")
    return episode


def _check_flat(values: np.ndarray, steps: int, what: str) -> None:
    if values.shape != (steps,):
        raise UserError(f"{what} has shape {values.shape}, not ({steps},) as rewards; {REPAIR}")
    if values.dtype.kind not in "biuf":
        raise UserError(f"{what} has dtype {values.dtype}, not numbers; {REPAIR}")


def _check_tree(space: spaces.Space, tree: Tree, rows: int, what: str, why: str) -> None:
    pairs = zip(leaves(leaf_spaces(space)), leaves(tree), strict=True)
    for (name, part), (_, values) in pairs:
        label = f"{what}/{name}" if name else what
        if len(values) != rows:
            raise UserError(f"{label} has {len(values)} rows, not {rows} ({why}); {REPAIR}")
        _check_leaf(part, values, label)


def _check_leaf(space: LeafSpace, values: np.ndarray, what: str) -> None:
    if values.shape[1:] != space.shape or not np.can_cast(values.dtype, space.dtype, "same_kind"):
        found = f"{values.dtype} of shape {values.shape[1:]}"
        raise UserError(f"{what} is {found} at each step, but its space is {space}; {REPAIR}")
    with np.errstate(over="ignore"):
        _check_finite(values.astype(space.dtype, copy=False), what)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        _check_range(space, values, what)


def _check_finite(values: np.ndarray, what: str) -> None:
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        raise UserError(f"{what} is {values[tuple(place)]} at step {place[0]}; {REPAIR}")


def _check_range(
    space: spaces.Discrete | spaces.MultiDiscrete, values: np.ndarray, what: str
) -> None:
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    outside = (values < space.start) | (values >= space.start + count)
    if outside.any():
        place = np.argwhere(outside)[0]
        found = values[tuple(place)]
        raise UserError(f"{what} is {found} at step {place[0]}, outside {space}; {REPAIR}")
