"""Spaces from HDF5 arrays, for files that do not describe theirs."""

from collections.abc import Sequence

import h5py
import numpy as np
from gymnasium import spaces

CHUNK_ROWS = 1 << 16


def infer_space(nodes: Sequence[h5py.Group | h5py.Dataset]) -> spaces.Space:
    """The space of rows like those of `nodes`, one node an episode.

    A group is a Dict (or Minari's Tuple). Flat integers are Discrete, bytes are an image, and any
    other array is an unbounded Box.
    """
    if isinstance(nodes[0], h5py.Dataset):
        return _infer_leaf(nodes)
    parts = {key: infer_space([node[key] for node in nodes]) for key in nodes[0]}
    if "_index_0" in parts:
        return spaces.Tuple([parts[f"_index_{i}"] for i in range(len(parts))])
    return spaces.Dict(parts)


def infer_action_space(nodes: Sequence[h5py.Group | h5py.Dataset]) -> spaces.Space:
    """As infer_space, but a Box of floats that all lie in [-1, 1] is bounded by it."""
    space = infer_space(nodes)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = _extent(nodes)
        if low >= -1 and high <= 1:
            return spaces.Box(-1, 1, space.shape, space.dtype)
    return space


def _infer_leaf(arrays: Sequence[h5py.Dataset]) -> spaces.Box | spaces.Discrete:
    shape, dtype = arrays[0].shape[1:], arrays[0].dtype
    if dtype == np.uint8 and shape:
        return spaces.Box(0, 255, shape, np.uint8)
    if np.issubdtype(dtype, np.integer) and not shape:
        return spaces.Discrete(int(_extent(arrays)[1]) + 1)
    dtype = dtype.type if np.issubdtype(dtype, np.floating) else np.float32
    return spaces.Box(-np.inf, np.inf, shape, dtype)


def _extent(arrays: Sequence[h5py.Dataset]) -> tuple[float, float]:
    """Smallest and largest value; reads a chunk at a time."""
    chunks = (a[i : i + CHUNK_ROWS] for a in arrays for i in range(0, len(a), CHUNK_ROWS))
    lows, highs = zip(*((chunk.min(), chunk.max()) for chunk in chunks), strict=True)
    return min(lows), max(highs)
