"""Datasets are whole or absent, hold what was played, and pass Minari's own checks."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces

from decision_s4.agents.random_agent import RandomAgent
from decision_s4.envs import datasets
from decision_s4.envs.collect import sample_episodes
from decision_s4.envs.dataset_sources import local_datasets
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make
from decision_s4.envs.minari_writer import Description, exists, write_dataset
from decision_s4.envs.scores import ReferenceScores

COUNTING = "CountingEpisodes-v0"
SCALE = ReferenceScores(-1.0, 9.0, "made up")


class Counting(gym.Env):
    """Observes (seed, steps so far); ends after 2 + seed % 3 steps; pays what is done."""

    observation_space = spaces.Dict({"n": spaces.Box(0, 99, (2,)), "odd": spaces.Discrete(2)})
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.number, self.count = seed, 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        ended = self.count == 2 + self.number % 3
        return self._observation(), float(action[0]), ended and self.number % 2 == 0, ended, {}

    def _observation(self):
        return {"n": np.array([self.number, self.count], np.float32), "odd": self.count % 2}


gym.register(COUNTING, entry_point=Counting)


class CountingAgent:
    """Does a tenth of the count it sees."""

    def initial_state(self, batch_size):
        return ()

    def act(self, step, state, deterministic=False):
        return step.observation["n"][:, 1:] / 10, state


def about(dataset_id="t/counting/some-v0", reference=SCALE) -> Description:
    return Description(dataset_id, COUNTING, "counting", "For a test.", reference)


def episodes(steps=20, **options):
    return sample_episodes(CountingAgent(), COUNTING, steps, seed=3, rows=4, workers=1, **options)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def test_what_was_played_is_what_is_read():
    quality = write_dataset(episodes(), about())
    data = datasets.load("t/counting/some-v0")
    assert data.lengths.tolist() == [2, 3, 4, 2, 3, 4, 2]  # seeds 3 … 9, until 20 steps
    assert (quality.episodes, quality.steps) == (7, 20)
    assert data.returns.tolist() == pytest.approx(quality.returns.tolist())
    for i in range(data.num_episodes):
        episode = data.episode(i)
        count = np.arange(data.lengths[i] + 1)
        seen = np.stack([np.full_like(count, 3 + i), count], 1)
        assert episode.observations["n"].tolist() == seen.tolist()
        assert episode.observations["odd"].tolist() == (count % 2).tolist()
        assert episode.actions[:, 0].tolist() == pytest.approx(count[:-1] / 10)
        assert episode.truncations[-1] and episode.terminations[-1] == ((3 + i) % 2 == 0)
    assert (data.env_id, data.reference_scores) == (COUNTING, (-1.0, 9.0))


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [("TMaze-v0", {"length": 3}), ("CountRecall-v0", {"decks": 2}), ("PendulumNoVel-v1", {})],
)
def test_a_task_of_ours_is_kept_with_its_arguments(env_id, arguments):
    space = make(env_id, **arguments).action_space
    played = sample_episodes(RandomAgent(space, 0), env_id, 5, 0, env_kwargs=arguments, rows=1)
    write_dataset(played, Description("t/task/ours-v0", env_id, "random", "", None, arguments))
    data = datasets.load("t/task/ours-v0")
    assert (data.env_id, data.env_kwargs) == (env_id, arguments)
    assert data.action_space == space


def test_minigrid_is_kept_as_it_is_seen():
    pytest.importorskip("minigrid")
    env_id = "MiniGrid-MemoryS7-v0"
    env = make(env_id)
    played = sample_episodes(RandomAgent(env.action_space, 0), env_id, 5, 0, rows=1)
    write_dataset(played, Description("t/task/grid-v0", env_id, "random", ""))
    assert datasets.load("t/task/grid-v0").observation_space == env.observation_space


def test_minari_loads_it_and_its_checks_pass():
    write_dataset(episodes(), about())
    (found,) = minari.list_local_datasets()
    assert found == "t/counting/some-v0"
    dataset = minari.load_dataset(found)
    assert dataset.spec.total_steps == dataset.storage.total_steps == 20
    assert dataset.storage.metadata["ref_max_score"] == 9.0
    for episode in dataset.iterate_episodes():
        assert len(episode.observations["n"]) == len(episode.actions) + 1
    both = minari.combine_datasets([dataset, dataset], "t/counting/twice-v0")
    assert both.total_episodes == 14


def test_a_failed_writing_leaves_nothing(root):
    def broken():
        yield from list(episodes())[:2]
        raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError):
        write_dataset(broken(), about())
    assert not exists("t/counting/some-v0")
    assert not list(root.rglob("*.hdf5"))


KILLED = """
import itertools, sys
sys.path.insert(0, {folder!r})
from {module} import about, episodes, write_dataset
def slow():
    for number in itertools.count():
        for episode in episodes(1):
            yield episode
        print(number, flush=True)
write_dataset(slow(), about())
"""


def test_a_killed_writing_is_never_taken_for_a_dataset(root, monkeypatch):
    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(minari, "download_dataset", offline)
    here = Path(__file__)
    code = KILLED.format(folder=str(here.parent), module=here.stem)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.readline()
    process.kill()
    process.wait()
    assert list(root.rglob("*.hdf5"))  # half of one lies there, hidden
    assert not exists("t/counting/some-v0")
    assert minari.list_local_datasets() == {}
    assert local_datasets() == []
    with pytest.raises(UserError, match="cannot be downloaded"):
        datasets.load("t/counting/some-v0")
    write_dataset(episodes(), about())
    assert len(list(root.rglob("*.hdf5"))) == 1  # the half-written one is gone
    assert datasets.load("t/counting/some-v0").num_steps == 20


@pytest.mark.parametrize("name", ["", "t/no version", "t/counting/some", "../up-v0"])
def test_an_id_that_minari_would_not_take_is_refused(name):
    with pytest.raises(UserError, match="no Minari id"):
        write_dataset(episodes(), about(name))


def test_a_dataset_is_not_overwritten():
    write_dataset(episodes(), about())
    with pytest.raises(UserError, match="exists"):
        write_dataset(episodes(), about())


def test_nothing_recorded_is_no_dataset(root):
    with pytest.raises(UserError, match="no episode"):
        write_dataset(iter([]), about())
    assert not list(root.rglob("*.hdf5"))
