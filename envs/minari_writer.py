"""A Minari dataset of episodes, which appears under its name only once it is whole."""

import functools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage

from decision_s4.envs.dataset_sources import minari_root
from decision_s4.envs.errors import UserError
from decision_s4.envs.frames import compress_hdf5, holds_frames
from decision_s4.envs.make import make
from decision_s4.envs.minari_files import MAIN_FILE
from decision_s4.envs.scores import ReferenceScores, normalized_score
from decision_s4.envs.spaces import Tree, leaf_spaces, leaves
from decision_s4.envs.trajectories import Episode


@dataclass(frozen=True)
class Description:
    """What a new dataset says of itself."""

    dataset_id: str
    env_id: str
    algorithm: str
    text: str
    reference: ReferenceScores | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """What a dataset holds."""

    episodes: int
    steps: int
    returns: np.ndarray  # (episodes,) float64

    def describe(self, reference: ReferenceScores | None) -> str:
        """One line for a person: size, returns, and their score where there is a scale."""
        mean = self.returns.mean()
        score = f", score {normalized_score(mean, reference):.1f}" if reference else ""
        return (
            f"{self.episodes:,} episodes, {self.steps:,} steps, return {mean:.1f} ± "
            f"{self.returns.std():.1f} ({self.returns.min():.1f} … {self.returns.max():.1f}){score}"
        )


def write_dataset(episodes: Iterable[Episode], about: Description) -> Quality:
    """Write the Minari dataset `about.dataset_id` under Minari's data root, whole or not at all.

    It is written to a hidden folder beside its place, which neither Minari nor we list, and renamed
    when whole; a killed process leaves such a folder, which the next one removes.

    Raises:
        UserError: for an id that Minari would not take, or that exists.
    """
    place = _free_place(about.dataset_id)
    for left in place.parent.glob(f".partial-{place.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{place.name}-", dir=place.parent))
    try:
        quality = _write(partial / "data", episodes, about)
        partial.chmod(0o755)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return quality


def exists(dataset_id: str) -> bool:
    """Whether a whole dataset of this id lies under Minari's data root."""
    return (minari_root() / dataset_id / "data" / "metadata.json").is_file()


def _free_place(dataset_id: str) -> Path:
    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise UserError(
            f"dataset id '{dataset_id}' is no Minari id; write one as mine/hopper/medium-v0"
        ) from None
    root = minari_root()
    if (root / dataset_id).exists():
        raise UserError(f"dataset '{dataset_id}' exists under {root}; remove it or take another id")
    try:
        (root / dataset_id).parent.mkdir(parents=True, exist_ok=True)
        _describe_namespaces(root, namespace)
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}; set MINARI_DATASETS_PATH elsewhere") from None
    return root / dataset_id


def _describe_namespaces(root: Path, namespace: str | None) -> None:
    """Minari wants a file in every folder above a dataset."""
    folder = root / (namespace or "")
    while folder != root:
        file = folder / "namespace_metadata.json"
        if not file.exists():
            file.write_text("{}")
        folder = folder.parent


def _write(data: Path, episodes: Iterable[Episode], about: Description) -> Quality:
    env = make(about.env_id, **about.env_kwargs)
    observation_space, action_space = env.observation_space, env.action_space
    env.close()
    storage = MinariStorage.new(
        data, observation_space, action_space, env_spec=_spec(about), jpeg_encoding=False
    )
    returns, steps = [], 0

    def buffers() -> Iterator[EpisodeBuffer]:
        nonlocal steps
        for episode in episodes:
            returns.append(float(np.sum(episode.rewards)))
            steps += len(episode.rewards)
            yield _buffer(episode, observation_space, action_space)

    storage.update_episodes(buffers())
    if any(holds_frames(leaf) for _, leaf in leaves(leaf_spaces(observation_space))):
        compress_hdf5(data / MAIN_FILE)
    if not returns:
        raise UserError(f"dataset '{about.dataset_id}': no episode was recorded; take more steps")
    storage.update_metadata(_metadata(about))
    return Quality(len(returns), steps, np.array(returns))


def _spec(about: Description) -> EnvSpec:
    """The environment's registered spec with its arguments.

    What makes it can be written as a name alone; those who read the dataset go by the id.
    """
    spec = gym.spec(about.env_id)
    made_by = spec.entry_point
    if isinstance(made_by, functools.partial):
        made_by = made_by.func
    if isinstance(made_by, type | FunctionType):
        made_by = f"{made_by.__module__}:{made_by.__qualname__}"
    return replace(spec, entry_point=made_by, kwargs=spec.kwargs | about.env_kwargs)


def _buffer(
    episode: Episode, observation_space: spaces.Space, action_space: spaces.Space
) -> EpisodeBuffer:
    return EpisodeBuffer(
        observations=_own_form(observation_space, episode.observations),
        actions=_own_form(action_space, episode.actions),
        rewards=episode.rewards,
        terminations=episode.terminations,
        truncations=episode.truncations,
    )


def _own_form(space: spaces.Space, tree: Tree) -> Any:
    """A tree of arrays as Minari nests values: a Tuple is a tuple, a leaf has the space's type."""
    if isinstance(space, spaces.Dict):
        return {key: _own_form(part, tree[key]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_own_form(part, tree[str(i)]) for i, part in enumerate(space))
    return np.asarray(tree).astype(space.dtype)


def _metadata(about: Description) -> dict[str, Any]:
    metadata = {
        "dataset_id": about.dataset_id,
        "algorithm_name": about.algorithm,
        "description": about.text,
        "minari_version": minari.__version__,
    }
    if about.reference:
        metadata |= {
            "ref_min_score": about.reference.minimum,
            "ref_max_score": about.reference.maximum,
            "num_episodes_average_score": 100,
        }
    return metadata
