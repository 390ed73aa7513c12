"""Minari dataset folders (HDF5, Arrow and Parquet) as episodes.

Minari's storages read the arrays. The environment spec in the metadata is read as plain JSON:
its `entry_point` names code, so it is ignored, as is an id of the form "module:Env".
"""

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium import spaces
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.infer_spaces import infer_action_space, infer_space
from decision_s4.envs.spaces import leaf_spaces, space_tree
from decision_s4.envs.trajectories import DatasetInfo, Episode

MAIN_FILE, METADATA = "main_data.hdf5", "metadata.json"
KINDS = ("arrow", "hdf5", "parquet")  # for a hint; Minari decides
REPAIR = "download or record it again"

log = logging.getLogger(__name__)


def read_minari(path: Path, name: str) -> tuple[DatasetInfo, Iterator[Episode]]:
    """Description and episodes of the dataset whose files (metadata.json, …) lie in `path`.

    Raises UserError, also while the episodes are read, naming the dataset and the episode.
    """
    metadata = _metadata(path, name)
    info = _info(metadata, path, name)
    return info, _episodes(_storage(metadata, path, info), metadata, info)


def _metadata(path: Path, name: str) -> dict[str, Any]:
    try:
        metadata = json.loads((path / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(name, METADATA, error) from error
    if not isinstance(metadata, dict):
        raise UserError(f"dataset '{name}': {METADATA} holds no JSON object; {REPAIR}")
    if not isinstance(count := metadata.get("total_episodes"), int):
        raise UserError(
            f"dataset '{name}': {METADATA} has total_episodes {count!r}, no number; {REPAIR}"
        )
    return metadata


def _info(metadata: dict[str, Any], path: Path, name: str) -> DatasetInfo:
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    scores = None
    if isinstance(low, int | float) and isinstance(high, int | float):
        scores = low, high
    return DatasetInfo(
        name=name,
        observation_space=_space(metadata, "observation", infer_space, path, name),
        action_space=_space(metadata, "action", infer_action_space, path, name),
        reference_scores=scores,
        **_environment(metadata, name),
    )


def _environment(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """env_id, env_kwargs and max_episode_steps of the stored environment spec."""
    try:
        spec = json.loads(metadata.get("env_spec") or "{}")
        env_id, limit = spec.get("id"), spec.get("max_episode_steps")
        kwargs = {k: v for k, v in (spec.get("kwargs") or {}).items() if k != "render_mode"}
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(name, f"env_spec of {METADATA}", error) from error
    if ":" in str(env_id):  # gym.make would import what precedes the colon
        log.warning("dataset '%s': environment id %r names code; ignored", name, env_id)
        env_id = None
    if spec.get("additional_wrappers"):
        log.warning("dataset '%s' was recorded with wrappers; they are not applied", name)
    limit = limit if isinstance(limit, int) else None
    return {
        "env_id": str(env_id) if env_id else None,
        "env_kwargs": kwargs,
        "max_episode_steps": limit,
    }


def _space(
    metadata: dict[str, Any], role: str, infer: Callable, path: Path, name: str
) -> spaces.Space:
    """As described, or inferred: Minari would run the entry point to ask the environment."""
    text = metadata.get(f"{role}_space")
    try:
        space = deserialize_space(text) if text else _from_file(infer, path / MAIN_FILE, f"{role}s")
    except Exception as error:  # whatever a malformed description makes Gymnasium raise
        raise _damaged(name, f"{role}_space of {METADATA}", error) from error
    leaf_spaces(space)
    return space


def _from_file(infer: Callable, path: Path, array: str) -> spaces.Space:
    with h5py.File(path) as file:
        return infer([episode[array] for episode in file.values()])


def _storage(metadata: dict[str, Any], path: Path, info: DatasetInfo) -> MinariStorage:
    try:
        if metadata.get("observation_space") and metadata.get("action_space"):
            return MinariStorage.read(path)
        return _storage_with_spaces(metadata["data_format"], path, info)
    except LookupError:
        kind = metadata.get("data_format")
        hint = nearest(str(kind), KINDS)
        raise UserError(
            f"dataset '{info.name}': {METADATA} has data_format {kind!r}{hint}"
        ) from None
    except (ValueError, OSError) as error:
        raise _damaged(info.name, str(path), error) from error


def _storage_with_spaces(kind: str, path: Path, info: DatasetInfo) -> MinariStorage:
    """A storage whose metadata lack the spaces: `MinariStorage.read` would ask the environment,
    and another empty one is the public way to its class."""
    spaces_of = info.observation_space, info.action_space
    with tempfile.TemporaryDirectory() as folder:
        empty = MinariStorage.new(folder, *spaces_of, data_format=kind)
    return type(empty)(path, *spaces_of)


def _episodes(
    storage: MinariStorage, metadata: dict[str, Any], info: DatasetInfo
) -> Iterator[Episode]:
    number, steps, count = 0, 0, metadata["total_episodes"]
    try:
        expected = storage.get_episode_metadata(range(count))
        for raw, about in zip(_raw_episodes(storage, count), expected, strict=True):
            if about.get("total_steps") not in (None, len(raw["rewards"])):
                raise ValueError(f"{len(raw['rewards'])} of {about['total_steps']} steps read")
            yield _episode(raw, info)
            number, steps = number + 1, steps + len(raw["rewards"])
        if metadata.get("total_steps") not in (None, steps):
            raise ValueError(f"{steps} of {metadata['total_steps']} steps read")
    except UserError:
        raise
    except Exception as error:  # h5py, pyarrow, Pillow and Minari's assertions differ in kind
        raise _damaged(info.name, f"episode {number}", error) from error


def _raw_episodes(storage: MinariStorage, count: int) -> Iterator[dict[str, Any]]:
    if storage.FORMAT == "hdf5":
        yield from storage.get_episodes(range(count))
        return
    for i in range(count):  # pyarrow reads ahead: one episode at a time bounds the memory
        yield from storage.get_episodes([i])


def _episode(raw: dict[str, Any], info: DatasetInfo) -> Episode:
    return Episode(
        space_tree(info.observation_space, raw["observations"]),
        space_tree(info.action_space, raw["actions"]),
        *(np.asarray(raw[key]) for key in ("rewards", "terminations", "truncations")),
    )


def _damaged(name: str, part: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if missing := re.search(r"object '(.+?)' doesn't exist", reason):
        reason = f"'{missing[1]}' is missing"
    return UserError(f"dataset '{name}': {part} cannot be read ({reason}); {REPAIR}")
