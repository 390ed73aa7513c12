"""Bad datasets: each failure is one line that names the dataset, the place and the fix."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.serialization import serialize_space

from decision_s4.envs.datasets import load
from decision_s4.envs.errors import UserError

BOX = spaces.Box(-np.inf, np.inf, (2,))
METADATA = {
    "data_format": "hdf5",
    "dataset_id": "test/bad-v0",
    "total_episodes": 2,
    "observation_space": serialize_space(BOX),
    "action_space": serialize_space(spaces.Discrete(3)),
}


@pytest.fixture
def message(tmp_path, monkeypatch) -> Callable[[str], str]:
    """The one line with which loading a name fails, run where no data lies."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)

    def fail(name: str) -> str:
        with pytest.raises(UserError) as error:
            load(name, tmp_path / "cache")
        assert "\n" not in str(error.value)
        return str(error.value)

    return fail


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound Minari folder "bad" with two episodes of 3 steps, for a test to spoil."""
    data = tmp_path / "bad" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(json.dumps(METADATA))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for i in range(2):
            group = file.create_group(f"episode_{i}")
            group["observations"] = np.zeros((4, 2), np.float32)
            group["actions"] = np.zeros(3, np.int64)
            group["rewards"] = np.zeros(3)
            group["terminations"] = group["truncations"] = np.zeros(3, bool)
    return data


def spoil(folder: Path, array: str, values: np.ndarray | None) -> None:
    """Replace (or drop) one array of episode 1."""
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        del file["episode_1"][array]
        if values is not None:
            file["episode_1"][array] = values


def describe(folder: Path, **changes) -> None:
    (folder / "metadata.json").write_text(json.dumps(METADATA | changes))


def test_the_unspoilt_folder_loads(folder, tmp_path):
    assert load(str(tmp_path / "bad"), tmp_path / "cache").num_steps == 6


NAN = np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]], np.float32)
SPOILT = {
    "nan": ("observations", NAN, "observations is nan at step 2; drop this episode"),
    "inf": ("rewards", np.array([0, np.inf, 0]), "rewards is inf at step 1; drop"),
    "huge": ("observations", np.full((4, 2), 1e300), "observations is inf at step 0; drop"),
    "short": ("observations", NAN[:3], "observations has 3 rows, not 4 (one more than rewards)"),
    "actions": ("actions", np.zeros(4, np.int64), "actions has 4 rows, not 3 (as many as rewards)"),
    "flags": ("terminations", np.zeros(2, bool), "terminations has shape (2,), not (3,)"),
    "column": ("rewards", np.zeros((3, 1)), "rewards has shape (3, 1), not (3,)"),
    "empty": ("rewards", np.zeros(0), "it has no steps; drop this episode"),
    "shape": ("observations", np.zeros((4, 5)), "observations is float64 of shape (5,) at each"),
    "dtype": ("actions", np.zeros(3), "actions is float64 of shape () at each step, but its space"),
    "range": ("actions", np.array([0, 1, 3]), "actions is 3 at step 2, outside Discrete(3)"),
    "words": ("rewards", np.array([b"a"] * 3), "rewards has dtype |S1, not numbers"),
    "missing": ("rewards", None, "cannot be read ('rewards' is missing); download or record"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_array_is_named(folder, message, case):
    array, values, expected = SPOILT[case]
    spoil(folder, array, values)
    found = message("bad")
    assert found.startswith("dataset 'bad'") and "episode 1" in found
    assert expected in found


def test_a_truncated_file(folder, message):
    path = folder / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:3000])
    assert "cannot be read" in message("bad")


def test_a_file_that_is_no_hdf5(folder, message):
    (folder / "main_data.hdf5").write_text("hello")
    assert "cannot be read" in message("bad")


def test_a_missing_file(folder, message):
    (folder / "main_data.hdf5").unlink()
    assert "cannot be read (No data found" in message("bad")


def test_a_missing_key_of_a_dict_space(folder, message):
    space = spaces.Dict({"eye": BOX, "hand": BOX})
    describe(folder, observation_space=serialize_space(space))
    with h5py.File(folder / "main_data.hdf5", "r+") as file:
        for group in file.values():
            del group["observations"]
            group["observations/eye"] = np.zeros((4, 2), np.float32)
    assert "episode 0 cannot be read ('hand')" in message("bad")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"total_episodes": 3}, "'episode_2' is missing"),
        ({"total_episodes": 0}, "has no episodes"),
        ({"total_episodes": None}, "metadata.json has total_episodes None, no number; download"),
        ({"total_episodes": 1, "total_steps": 6}, "episode 1 cannot be read (3 of 6 steps read)"),
        ({"data_format": "zip"}, "data_format 'zip'"),
        ({"observation_space": '{"type": "Cube"}'}, "observation_space of metadata.json cannot"),
        ({"observation_space": "{"}, "observation_space of metadata.json cannot"),
        ({"action_space": '{"type": "Dict", "subspaces": {}}'}, "has no parts"),
        ({"env_spec": "{"}, "env_spec of metadata.json cannot be read"),
        ({"env_spec": "[1]"}, "env_spec of metadata.json cannot be read"),
    ],
)
def test_bad_metadata(folder, message, changes, expected):
    describe(folder, **changes)
    assert expected in message("bad")


def test_a_set_under_the_root_without_metadata_is_not_looked_for_elsewhere(tmp_path, message):
    (tmp_path / "root/test/bad-v0/data").mkdir(parents=True)
    assert "bad-v0 holds neither data/metadata.json nor metadata.json" in message("test/bad-v0")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_metadata_that_is_no_object(folder, message, text):
    (folder / "metadata.json").write_text(text)
    assert "dataset 'bad': metadata.json" in message("bad")


def test_a_folder_without_data(tmp_path, message):
    (tmp_path / "empty").mkdir()
    assert "neither data/metadata.json nor metadata.json" in message("empty")


@pytest.mark.parametrize("name", ["./nothing", "nothing.hdf5", "/no/where", "~no-such-user/x"])
def test_a_path_that_is_not_there(message, name):
    assert message(name) == f"dataset '{name}': no such file or folder; check the path"


def test_a_name_that_no_file_can_have(message):
    assert "cannot be read" in message("a" * 5000)


@pytest.mark.parametrize("names", ["", "hopper-mixed,", " , "])
def test_an_empty_name(message, names):
    assert message(names).startswith("a dataset name is empty; write one name")


def test_an_unknown_name_offers_the_nearest(message):
    assert message("hoper-mixed") == "unknown dataset 'hoper-mixed'; did you mean 'hopper-mixed'?"
    assert "did you mean 'hopper-medium-v2'?" in message("hopper-medium-v3")


def test_an_unreachable_minari_id(folder, tmp_path, message, monkeypatch):
    def unreachable(name):
        raise OSError("no route\nto host")

    monkeypatch.setattr(minari, "download_dataset", unreachable)
    local = tmp_path / "root" / "gym" / "hopper" / "medium-v0"
    local.parent.mkdir(parents=True)
    folder.parent.rename(local)
    found = message("hopper/medium-v0")
    assert f"is not under {tmp_path / 'root'} and cannot be downloaded (no route)" in found
    assert "set MINARI_DATASETS_PATH" in found
    assert found.endswith("did you mean 'gym/hopper/medium-v0'?")


def write_d4rl(path: Path, **changes) -> None:
    arrays = {
        "observations": np.zeros((4, 2)),
        "actions": np.zeros((4, 1)),
        "rewards": np.zeros(4),
        "terminals": np.array([0, 1, 0, 1], bool),
    }
    with h5py.File(path, "w") as file:
        for key, values in (arrays | changes).items():
            if values is not None:
                file[key] = values


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"next_observations": np.zeros((4, 3))}, "next_observations differ in shape"),
        ({"rewards": None}, "no array 'rewards' in the file; give it observations, actions, "),
        ({"terminals": np.zeros(3, bool)}, "terminals has 3 rows, rewards 4"),
        ({"terminals": np.zeros(4, bool)}, "none of its 4 steps ends an episode; mark the ends"),
        ({"rewards": np.array([0, 0, 0, np.nan])}, "episode 1: rewards is nan at step 1"),
        ({"actions": np.array([0, 0, 0, -1])}, "episode 1: actions is -1 at step 1, outside"),
        ({k: np.zeros(0) for k in ("observations", "actions", "rewards", "terminals")}, "no steps"),
    ],
)
def test_a_bad_d4rl_file(tmp_path, message, changes, expected):
    write_d4rl(tmp_path / "file.hdf5", **changes)
    found = message("file.hdf5")
    assert found.startswith("dataset 'file.hdf5'")
    assert expected in found


def test_a_truncated_d4rl_file(tmp_path, message):
    path = tmp_path / "file.hdf5"
    write_d4rl(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "is damaged or no HDF5 file" in message("file.hdf5")


def test_a_pickle_is_told_how_it_becomes_a_file(tmp_path, message):
    (tmp_path / "hopper.pkl").write_bytes(pickle.dumps([{"rewards": np.zeros(3)}]))
    found = message("hopper.pkl")
    assert found.startswith("dataset 'hopper.pkl' is no HDF5 file")
    assert found.endswith("convert it, docs/data.md shows how")


def test_sets_that_differ_do_not_combine(folder, tmp_path, message):
    write_d4rl(tmp_path / "file.hdf5")
    found = message("bad,file.hdf5")
    assert found.startswith("datasets 'bad' and 'file.hdf5' differ in action_space")
    assert found.endswith("combine sets of one environment")
