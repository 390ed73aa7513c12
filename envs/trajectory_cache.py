"""Trajectories on disk: a folder of .npy files and index.json, written once, memory-mapped after.

Images are compressed (frames.py). Episodes stream through, so a dataset larger than memory
converts; the folder is written under another name and renamed when whole, so nobody ever opens half
a dataset.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
from gymnasium import spaces
from minari.serialization import deserialize_space, serialize_space

from decision_s4.envs.episode_checks import checked
from decision_s4.envs.errors import UserError
from decision_s4.envs.frames import SUFFIX, Frames, GrowingFrames, holds_frames
from decision_s4.envs.spaces import LeafSpace, Tree, leaf_shape, leaf_spaces, map_tree
from decision_s4.envs.trajectories import DatasetInfo, Episode, Trajectories

INDEX = "index.json"
FLAT_ARRAYS = {"rewards": "float64", "terminations": "bool", "truncations": "bool"}


class _GrowingArray:
    """A .npy file appended to row by row; NumPy pads the header for a length filled in later."""

    def __init__(self, path: Path, dtype: np.dtype, row_shape: tuple[int, ...]):
        self.dtype, self.row_shape, self.rows = dtype, row_shape, 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.rows += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.rows, *self.row_shape),
            },
        )


def write_trajectories(folder: Path, info: DatasetInfo, episodes: Iterator[Episode]) -> None:
    """Check and write every episode, then rename the result to `folder`. Raises UserError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        lengths = _write_arrays(partial, info, episodes)
        np.save(partial / "lengths.npy", lengths, allow_pickle=False)
        (partial / INDEX).write_text(json.dumps(_to_json(info)))
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_trajectories(folder: Path, name: str) -> Trajectories:
    """The trajectories in `folder`, memory-mapped and read-only, under the name `name`.

    Raises OSError, ValueError or KeyError when the folder is missing or damaged.
    """
    info = _from_json(json.loads((folder / INDEX).read_text()) | {"name": name})
    lengths = np.load(folder / "lengths.npy", allow_pickle=False)
    return Trajectories(
        **vars(info),
        observations=_open_tree(folder, "observations", info.observation_space),
        actions=_open_tree(folder, "actions", info.action_space),
        rewards=_open(folder / "rewards.npy"),
        terminations=_open(folder / "terminations.npy"),
        truncations=_open(folder / "truncations.npy"),
        lengths=lengths,
    )


def _write_arrays(folder: Path, info: DatasetInfo, episodes: Iterator[Episode]) -> np.ndarray:
    trees = {"observations": info.observation_space, "actions": info.action_space}
    arrays = {name: _grow_tree(folder, name, space) for name, space in trees.items()}
    for name, kind in FLAT_ARRAYS.items():
        arrays[name] = _GrowingArray(folder / f"{name}.npy", np.dtype(kind), ())
    lengths = []
    try:
        for number, episode in enumerate(episodes):
            checked(episode, number, info)
            for name, array in arrays.items():
                map_tree(lambda a, v: a.append(v), array, getattr(episode, name))
            lengths.append(len(episode.rewards))
    finally:
        for array in arrays.values():
            map_tree(lambda a: a.close(), array)
    if not lengths:
        raise UserError(f"dataset '{info.name}' has no episodes; record or download it again")
    return np.array(lengths, np.int64)


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / INDEX).exists():  # else another process finished the same conversion
            raise


def _grow_tree(folder: Path, name: str, space: spaces.Space) -> Tree:
    paths = _leaf_paths(folder, name, space)
    return map_tree(_grow, leaf_spaces(space), paths)


def _grow(space: LeafSpace, path: Path) -> _GrowingArray | GrowingFrames:
    if holds_frames(space):
        return GrowingFrames(path)
    return _GrowingArray(path, space.dtype, leaf_shape(space))


def _open_tree(folder: Path, name: str, space: spaces.Space) -> Tree:
    return map_tree(_open_leaf, leaf_spaces(space), _leaf_paths(folder, name, space))


def _open_leaf(space: LeafSpace, path: Path) -> np.ndarray | Frames:
    compressed = path.with_suffix(SUFFIX).exists()  # not in folders written before they were
    return Frames(path, leaf_shape(space)) if compressed else _open(path)


def _leaf_paths(folder: Path, name: str, space: spaces.Space) -> Tree:
    """Numbered files, since the key of a Dict space may be no file name."""
    number = itertools.count()
    return map_tree(lambda leaf: folder / f"{name}.{next(number)}.npy", leaf_spaces(space))


def _open(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _to_json(info: DatasetInfo) -> dict:
    values = {f.name: getattr(info, f.name) for f in fields(info)}
    for key in ("observation_space", "action_space"):
        values[key] = serialize_space(values[key])
    return values


def _from_json(values: dict) -> DatasetInfo:
    values = dict(values)
    for key in ("observation_space", "action_space"):
        values[key] = deserialize_space(values[key])
    if values["reference_scores"] is not None:
        values["reference_scores"] = tuple(values["reference_scores"])
    return DatasetInfo(**values)
