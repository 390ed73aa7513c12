"""D4RL HDF5 files: where episodes end, what is dropped, and the download."""

import functools
import http.server
import json
import logging
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from decision_s4.envs.d4rl_download import D4RL_URLS, download
from decision_s4.envs.d4rl_files import environment_of, time_limits
from decision_s4.envs.datasets import load
from decision_s4.envs.errors import UserError

TERMINALS = [0, 1, 0, 0, 0, 0, 1, 0, 0]
TIMEOUTS = [0, 0, 0, 0, 1, 0, 0, 0, 0]


def write_d4rl(path: Path, leave_out=(), **changes) -> Path:
    """Nine steps: an episode of 2 (terminated), 3 (truncated), 2 (terminated), 2 unfinished."""
    steps = np.arange(9, dtype=np.float32)
    arrays = {
        "observations": np.stack([steps, -steps], axis=1),
        "next_observations": np.stack([steps + 100, -steps], axis=1),
        "actions": steps[:, None] / 10,
        "rewards": steps + 1,
        "terminals": np.array(TERMINALS, bool),
        "timeouts": np.array(TIMEOUTS, bool),
        "infos/qpos": np.zeros((9, 3)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in (arrays | changes).items():
            if key not in leave_out:
                file[key] = values
    return path


def test_episodes_end_at_terminals_and_timeouts(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = load(str(write_d4rl(tmp_path / "hopper_medium-v2.hdf5")), tmp_path / "cache")
    assert data.lengths.tolist() == [2, 3, 2]
    assert data.returns.tolist() == [3.0, 12.0, 13.0]
    assert data.terminations.tolist() == [False, True, False, False, False, False, True]
    assert data.truncations.tolist() == [False, False, False, False, True, False, False]
    assert "dropped 2 steps of an unfinished last episode" in caplog.text
    assert (data.env_id, data.max_episode_steps) == ("Hopper-v5", 1000)


@pytest.mark.parametrize("order", ["own.hdf5,hopper-a.hdf5", "hopper-a.hdf5,own.hdf5"])
def test_a_file_that_names_no_environment_takes_the_others(order, tmp_path, monkeypatch):
    """Its action bounds, which are not logged, and its precision too."""
    monkeypatch.chdir(tmp_path)
    write_d4rl(Path("hopper-a.hdf5"), actions=np.zeros((9, 1), np.float32))
    doubles = {name: np.full((9, 2), 0.1) for name in ("observations", "next_observations")}
    write_d4rl(Path("own.hdf5"), **doubles, actions=np.full((9, 1), 2.0))
    data = load(order, tmp_path / "cache")
    assert (data.env_id, data.num_episodes) == ("Hopper-v5", 6)
    assert data.action_space == spaces.Box(-1, 1, (1,))
    assert data.observations.dtype == np.float32
    assert sorted(data.actions[:, 0]) == [0] * 7 + [2] * 7


def test_files_that_name_two_environments_do_not_combine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(write_d4rl(Path(f"{name}.hdf5"))) for name in ("own", "hopper-a", "ant-a")]
    with pytest.raises(UserError, match=r"differ in env_id \(Hopper-v5 and Ant-v5\)"):
        load(",".join(names), tmp_path / "cache")


def test_the_final_observation_is_the_next_one(tmp_path):
    data = load(str(write_d4rl(tmp_path / "a.hdf5")), tmp_path / "cache")
    assert data.episode(1).observations[:, 0].tolist() == [2, 3, 4, 104]
    assert data.final_observation_known


def test_without_next_observations_the_last_repeats(tmp_path):
    path = write_d4rl(tmp_path / "a.hdf5", leave_out=["next_observations"])
    data = load(str(path), tmp_path / "cache")
    assert data.episode(1).observations[:, 0].tolist() == [2, 3, 4, 4]
    assert not data.final_observation_known


def test_spaces_come_from_the_arrays(tmp_path):
    data = load(str(write_d4rl(tmp_path / "a.hdf5")), tmp_path / "cache")
    assert data.observation_space.shape == (2,)
    assert (data.action_space.low.tolist(), data.action_space.high.tolist()) == ([-1], [1])
    wide = write_d4rl(tmp_path / "b.hdf5", actions=np.full((9, 1), 2.0))
    assert np.isinf(load(str(wide), tmp_path / "cache").action_space.high).all()
    discrete = write_d4rl(tmp_path / "c.hdf5", actions=np.arange(9))
    assert load(str(discrete), tmp_path / "cache").action_space.n == 9


def test_columns_are_flattened(tmp_path):
    column = {"rewards": np.ones((9, 1)), "terminals": np.array(TERMINALS, bool)[:, None]}
    data = load(str(write_d4rl(tmp_path / "a.hdf5", **column)), tmp_path / "cache")
    assert data.returns.tolist() == [2.0, 3.0, 2.0]


def test_time_limits_count_from_each_termination():
    terminations = np.array([0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0], bool)
    assert np.flatnonzero(time_limits(terminations, 3)).tolist() == [4, 7, 10]


def test_without_timeouts_the_time_limit_ends_episodes(tmp_path):
    terminals, steps = np.zeros(2500, bool), np.zeros((2500, 1), np.float32)
    arrays = {"observations": steps, "actions": steps, "rewards": steps[:, 0]}
    left_out = ["timeouts", "next_observations"]
    path = tmp_path / "walker2d_random.hdf5"
    write_d4rl(path, left_out, terminals=terminals, **arrays)
    data = load(str(path), tmp_path / "cache")
    assert data.lengths.tolist() == [1000, 1000]
    assert np.flatnonzero(data.truncations).tolist() == [999, 1999]


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("hopper-medium-v2", "Hopper-v5"),
        ("HalfCheetah_medium_replay-v2.hdf5", "HalfCheetah-v5"),
        ("door-human-v1", "AdroitHandDoor-v1"),
        ("ant-medium-v2", "Ant-v5"),
        ("antmaze-umaze-v2", None),
        ("Ant_maze_u-maze_noisy.hdf5", None),
    ],
)
def test_names_tell_the_environment(name, env_id):
    assert environment_of(name)[0] == env_id


def test_published_addresses():
    root = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
    expected = {
        "hopper-medium-v2": "gym_mujoco_v2/hopper_medium-v2.hdf5",
        "walker2d-medium-replay-v2": "gym_mujoco_v2/walker2d_medium_replay-v2.hdf5",
        "door-human-v1": "hand_dapg_v1/door-human-v1.hdf5",
        "antmaze-umaze-v2": "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_"
        "multigoal_False_sparse_fixed.hdf5",
        "antmaze-medium-play-v2": "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_"
        "multigoal_False_sparse_fixed.hdf5",
        "antmaze-large-diverse-v2": "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_"
        "multigoal_True_sparse_fixed.hdf5",
    }
    for name, path in expected.items():
        assert D4RL_URLS[name] == f"{root}/{path}"


@pytest.fixture
def server(tmp_path):
    """Address of a local web server over tmp_path/"web"."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(_Quiet, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send_header(self, keyword, value):
        if keyword == "Content-Length" and "short" in self.path:
            value = str(int(value) + 1)
        super().send_header(keyword, value)


def test_an_id_is_downloaded_once_and_verified(tmp_path, server, monkeypatch):
    write_d4rl(tmp_path / "web" / "h.hdf5")
    monkeypatch.setitem(D4RL_URLS, "hopper-medium-v2", f"{server}/h.hdf5")
    assert load("hopper-medium-v2", tmp_path / "cache").env_id == "Hopper-v5"
    path = tmp_path / "cache" / "d4rl" / "hopper-medium-v2.hdf5"
    record = json.loads(path.with_name(path.name + ".json").read_text())
    assert (record["url"], record["bytes"]) == (f"{server}/h.hdf5", path.stat().st_size)

    (tmp_path / "web" / "h.hdf5").unlink()
    assert load("hopper-medium-v2", tmp_path / "cache").num_episodes == 3

    write_d4rl(path, rewards=np.zeros(9))
    with pytest.raises(UserError, match=r"sha256 .* delete it to download again"):
        load("hopper-medium-v2", tmp_path / "cache")


def test_a_broken_download_leaves_nothing(tmp_path, server, monkeypatch):
    write_d4rl(tmp_path / "web" / "short.hdf5")
    monkeypatch.setitem(D4RL_URLS, "hopper-medium-v2", f"{server}/short.hdf5")
    with pytest.raises(UserError, match=r"cannot be had .*\d+ bytes.*; connect to the network"):
        load("hopper-medium-v2", tmp_path / "cache")
    assert list((tmp_path / "cache" / "d4rl").iterdir()) == []


def test_a_missing_address_is_one_line(tmp_path, server, monkeypatch):
    monkeypatch.setitem(D4RL_URLS, "hopper-medium-v2", f"{server}/none.hdf5")
    with pytest.raises(UserError, match="404") as error:
        load("hopper-medium-v2", tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_download_reads_file_addresses(tmp_path):
    (tmp_path / "source").write_bytes(b"data")
    download((tmp_path / "source").as_uri(), tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"data"
