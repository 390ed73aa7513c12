"""Datasets by name: alignment of every episode, every format and space, cache, combination."""

import json
import logging
import os
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from decision_s4.envs.dataset_sources import DEFAULT_DATASET, EMBEDDED
from decision_s4.envs.datasets import load
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import leaves, space_tree

SPACES = {
    "box": spaces.Box(-1, 1, (3,), np.float64),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (32, 40, 3), np.uint8),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]),
    "dict": spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (32, 32, 3), np.uint8),
            "hand": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]),
        }
    ),
}


def stacked(space: spaces.Space, samples: list):
    """Samples of a space as Minari's buffers hold them: arrays in dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return {k: stacked(part, [s[k] for s in samples]) for k, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [s[i] for s in samples]) for i, part in enumerate(space))
    if space.shape and space.dtype == np.uint8:  # JPEG keeps a plain frame exactly
        return np.stack([np.full(space.shape, s.flat[0] // 32 * 32, np.uint8) for s in samples])
    return np.stack(samples)


def buffer(number: int, steps: int, observation: spaces.Space, action: spaces.Space):
    return EpisodeBuffer(
        id=number,
        observations=stacked(observation, [observation.sample() for _ in range(steps + 1)]),
        actions=stacked(action, [action.sample() for _ in range(steps)]),
        rewards=[float(i) for i in range(steps)],
        terminations=[False] * (steps - 1) + [True],
        truncations=[False] * steps,
        infos={},
    )


def write_minari(folder: Path, observation: spaces.Space, action: spaces.Space, kind="hdf5"):
    """Episodes of 1, 4 and 2 steps in a new Minari folder; the buffers that went in."""
    observation.seed(0), action.seed(1)
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", observation, action, data_format=kind)
    storage.update_metadata({"dataset_id": "test/made-v0", "minari_version": "0.5.4"})
    buffers = [buffer(i, steps, observation, action) for i, steps in enumerate((1, 4, 2))]
    storage.update_episodes(buffers)
    return buffers


def edit_metadata(folder: Path, **changes):
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_trees_equal(found, expected):
    for (name, ours), (_, theirs) in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2 * (theirs.dtype == np.uint8), err_msg=name)


@pytest.mark.parametrize("kind", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("name", SPACES)
def test_any_space_in_any_format(tmp_path, name, kind):
    space = SPACES[name]
    buffers = write_minari(tmp_path / "set", space, SPACES["discrete"], kind)
    data = load(str(tmp_path / "set"), tmp_path / "cache")
    assert data.lengths.tolist() == [1, 4, 2]
    assert data.observation_space == space
    for i, raw in enumerate(buffers):
        episode = data.episode(i)
        assert_trees_equal(episode.observations, space_tree(space, raw.observations))
        assert episode.actions.tolist() == list(raw.actions)
        assert episode.rewards.tolist() == raw.rewards
        assert episode.terminations.tolist() == raw.terminations


@pytest.mark.parametrize("name", ["tuple", "dict"])
def test_actions_may_be_trees(tmp_path, name):
    buffers = write_minari(tmp_path / "set", SPACES["box"], SPACES[name])
    data = load(str(tmp_path / "set"), tmp_path / "cache")
    assert_trees_equal(data.episode(1).actions, space_tree(SPACES[name], buffers[1].actions))


REAL = ["D4RL/door/human-v2", "gym/hopper/medium-v0", "gym/hopper/medium-replay-v0"]


@pytest.mark.parametrize("name", REAL)
def test_every_real_episode_is_aligned(datasets_root, monkeypatch, tmp_path, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets_root))
    data = load(name, tmp_path)
    with h5py.File(datasets_root / name / "data" / "main_data.hdf5") as file:
        assert data.num_episodes == len(file)
        for i in range(len(file)):
            episode, raw = data.episode(i), file[f"episode_{i}"]
            for key, values in episode._asdict().items():
                np.testing.assert_array_equal(values, raw[key][:], err_msg=f"episode {i} {key}")


def test_door_is_described(datasets_root, monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets_root))
    data = load("D4RL/door/human-v2", tmp_path)
    assert (data.num_episodes, data.num_steps) == (25, 6729)
    assert data.env_id == "AdroitHandDoor-v1"
    assert data.env_kwargs == {"reward_type": "dense"}
    assert data.max_episode_steps == 200
    assert data.reference_scores == pytest.approx((-45.807, 2940.578), abs=1e-3)
    assert data.final_observation_known


def test_a_dataset_may_be_a_path(tmp_path):
    hopper = EMBEDDED / DEFAULT_DATASET
    by_name, by_path = (load(name, tmp_path) for name in (str(hopper), hopper))
    assert np.array_equal(by_name.rewards, by_path.rewards)


def test_the_embedded_set(tmp_path):
    data = load(DEFAULT_DATASET, tmp_path)
    assert (data.num_episodes, data.num_steps, data.env_id) == (151, 70067, "Hopper-v5")
    assert data.reference_scores == (-20.272305, 3234.3)
    assert (data.returns > 3600).sum() == 43
    assert (data.returns < 1000).sum() == 82
    assert sum(f.stat().st_size for f in (EMBEDDED / DEFAULT_DATASET).rglob("*.*")) < 5.9e6


def test_the_second_load_reads_the_cache(tmp_path):
    write_minari(tmp_path / "set", SPACES["box"], SPACES["box"])
    first = load(str(tmp_path / "set"), tmp_path / "cache")
    main = tmp_path / "set" / "data" / "main_data.hdf5"
    size, times = main.stat().st_size, (main.stat().st_atime_ns, main.stat().st_mtime_ns)
    main.write_bytes(bytes(size))  # unreadable now, but its size and time are the same
    os.utime(main, ns=times)
    second = load(str(tmp_path / "set"), tmp_path / "cache")
    np.testing.assert_array_equal(first.observations, second.observations)
    assert isinstance(second.observations, np.memmap)
    assert not second.observations.flags.writeable


def test_a_changed_source_converts_anew(tmp_path):
    folder = tmp_path / "set"
    write_minari(folder, SPACES["box"], SPACES["box"])
    assert load(str(folder), tmp_path / "cache").num_episodes == 3
    MinariStorage.read(folder / "data").update_episodes(
        [buffer(3, 2, SPACES["box"], SPACES["box"])]
    )
    assert load(str(folder), tmp_path / "cache").num_episodes == 4


def test_a_damaged_cache_converts_anew(tmp_path, caplog):
    write_minari(tmp_path / "set", SPACES["box"], SPACES["box"])
    load(str(tmp_path / "set"), tmp_path / "cache")
    (rewards,) = (tmp_path / "cache").rglob("rewards.npy")
    rewards.write_bytes(rewards.read_bytes()[:-8])
    assert load(str(tmp_path / "set"), tmp_path / "cache").rewards[-1] == 1.0
    assert "converting again" in caplog.text
    rewards.unlink()
    assert load(str(tmp_path / "set"), tmp_path / "cache").rewards[-1] == 1.0


def test_nothing_half_written_is_left(tmp_path):
    write_minari(tmp_path / "set", SPACES["box"], SPACES["box"])
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5", "r+") as file:
        file["episode_2/rewards"][1] = np.nan
    with pytest.raises(UserError):
        load(str(tmp_path / "set"), tmp_path / "cache")
    assert list((tmp_path / "cache" / "trajectories").iterdir()) == []


def test_an_unwritable_cache_falls_back_to_a_temporary_one(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    write_minari(tmp_path / "set", SPACES["box"], SPACES["box"])
    data = load(str(tmp_path / "set"), tmp_path / "file" / "cache")
    assert data.num_steps == 7
    assert "cannot write" in caplog.text


def test_several_sets_are_one(tmp_path):
    for name in "ab":
        write_minari(tmp_path / name, SPACES["dict"], SPACES["box"])
    both = load(f"{tmp_path}/a, {tmp_path}/b", tmp_path / "cache")
    assert both.lengths.tolist() == [1, 4, 2, 1, 4, 2]
    one = load(f"{tmp_path}/b", tmp_path / "cache")
    assert_trees_equal(both.episode(4).observations, one.episode(1).observations)


def test_missing_spaces_are_inferred_without_the_environment(tmp_path):
    space = SPACES["tuple"]
    write_minari(tmp_path / "set", space, SPACES["box"])
    path = tmp_path / "set" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["observation_space"], metadata["action_space"]
    metadata["env_spec"] = json.dumps({"id": "No-v0", "entry_point": "antigravity:boom"})
    path.write_text(json.dumps(metadata))
    data = load(str(tmp_path / "set"), tmp_path / "cache")
    assert data.observation_space[1].shape == (2,)
    assert isinstance(data.observation_space[0], spaces.Discrete)
    assert data.action_space == spaces.Box(-1, 1, (3,), np.float64)
    assert data.env_id == "No-v0"


def test_an_id_that_names_code_is_dropped(tmp_path, caplog):
    """gym.make("module:Env-v0") imports the module."""
    write_minari(tmp_path / "set", SPACES["box"], SPACES["box"])
    edit_metadata(tmp_path / "set", env_spec=json.dumps({"id": "antigravity:Env-v0"}))
    with caplog.at_level(logging.WARNING):
        assert load(str(tmp_path / "set"), tmp_path / "cache").env_id is None
    assert "antigravity" in caplog.text


def test_without_a_network_there_is_one_complaint(tmp_path, monkeypatch, caplog):
    """Hugging Face's client warns of every attempt; logging is as before afterwards."""
    client = logging.getLogger("huggingface_hub.utils._http")

    def download(name: str) -> None:
        client.warning("Retrying in 1s")
        raise OSError("Name or service not known")

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(UserError, match=r"cannot be downloaded \(Name or service not known\)"):
        load("gym/hopper/medium-v0", tmp_path)
    assert caplog.text == ""
    client.warning("heard")
    assert "heard" in caplog.text
