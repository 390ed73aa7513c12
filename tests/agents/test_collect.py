"""The collector from the outside: every quality, resumed where it stopped, and from a run."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from decision_s4 import train
from decision_s4.agents import collect as program
from decision_s4.agents.data_maker import Curve, DataMaker, MakerOptions
from decision_s4.envs import datasets
from decision_s4.envs.dataset_sources import local_datasets

SMALL = (
    "--env Pendulum-v1 --name t/pendulum --training-steps 420 --eval-every 200 --eval-episodes 1 "
    "--save-every 200 --steps 200 --work-dir maker"
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def collect(flags: str) -> int:
    return program.main(flags.split())


def test_every_quality_by_one_command_and_a_second_one_makes_nothing_anew(capsys):
    assert collect(f"{SMALL} --reference=-3000,3000") == 0
    said = capsys.readouterr().out
    assert local_datasets() == sorted(f"t/pendulum/{q}-v0" for q in program.QUALITIES)
    for quality in program.QUALITIES:
        data = datasets.load(f"t/pendulum/{quality}-v0")
        assert data.reference_scores == (-3000.0, 3000.0)
        assert data.truncations.sum() == data.num_episodes
    replay = datasets.load("t/pendulum/medium-replay-v0")
    first, _ = gym.make("Pendulum-v1").reset(seed=0)
    assert np.abs(replay.episode(0).actions).max() > 1  # in the space's units, not the buffer's
    assert replay.observations[0] == pytest.approx(first)
    assert "0 = -3000.00 (random), 100 = 3000.00 (expert)" in said
    assert collect(SMALL) == 0
    assert capsys.readouterr().out.count("is there already") == 5


def test_a_training_goes_on_where_it_was_saved(tmp_path):
    options = MakerOptions(training_steps=300, eval_every=100, eval_episodes=1, save_every=100)
    maker = DataMaker("Pendulum-v1", options, tmp_path / "maker", seed=0, device="cpu")
    maker.train(lambda curve: len(curve.steps) == 2, lambda maker: None)
    assert maker.curve.steps == [100, 200]
    again = DataMaker("Pendulum-v1", options, tmp_path / "maker", seed=0, device="cpu")
    assert again.curve == maker.curve
    seen = maker.model.replay_buffer.observations[:199]
    assert np.array_equal(again.model.replay_buffer.observations[:199], seen)
    again.train(lambda curve: False, lambda maker: None)
    assert again.curve.steps == [100, 200, 300]
    assert sum(len(episode.rewards) for episode in again.replay(300)) == 199


class Parts(gym.Env):
    """Observes a Dict, takes a Discrete, and lasts five steps."""

    observation_space = spaces.Dict({"x": spaces.Box(-9, 9, (2,)), "even": spaces.Discrete(2)})
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._seen(), {}

    def step(self, action):
        self.time += 1
        return self._seen(), float(action), self.time == 5, False, {}

    def _seen(self):
        return {"x": np.full(2, self.time, np.float32), "even": self.time % 2}


gym.register("CollectedParts-v0", entry_point=Parts)


def test_a_dict_observed_and_a_discrete_action_taken():
    flags = SMALL.replace("Pendulum-v1", "CollectedParts-v0").replace("t/pendulum", "t/parts")
    assert collect(f"{flags} --qualities medium,medium-replay --reference=-30,0") == 0
    for quality in ("medium", "medium-replay"):
        episode = datasets.load(f"t/parts/{quality}-v0").episode(3)
        assert episode.observations["x"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert episode.observations["even"].tolist() == [0, 1, 0, 1, 0, 1]
        assert episode.rewards.tolist() == episode.actions.tolist()
        assert episode.terminations.tolist() == [False] * 4 + [True]


def test_the_medium_policy_is_the_first_that_reaches_a_third():
    curve = Curve([1, 2, 3], [5.0, 40.0, 90.0])
    assert (curve.first_reaching(30.0), curve.first_reaching(91.0), curve.best()) == (2, None, 3)


def test_a_training_that_reaches_no_third_says_what_to_do(capsys):
    assert collect(f"{SMALL} --qualities medium --reference=0,1 --threads 0") == 2
    assert "give more --training-steps" in capsys.readouterr().err
    assert local_datasets() == []


def test_a_run_of_ours_makes_a_dataset():
    tiny = "--steps 2 --eval-every 2 --eval-episodes 1 --d-model 8 --n-layers 1 --run-dir run"
    assert train.main([*tiny.split(), "--no-video", "--target-returns", "100"]) == 0
    assert collect("--run run --name t/hopper/ours-v0 --steps 50") == 0
    data = datasets.load("t/hopper/ours-v0")
    assert data.env_id == "Hopper-v5"
    assert data.num_steps >= 50


def test_a_run_that_aims_at_no_return_makes_a_dataset_too(tmp_path):
    tiny = "--algo ppo --env CartPole-v1 --steps 8 --rollout-steps 4 --rows 2 --d-model 8"
    run = "--eval-episodes 1 --n-layers 1 --no-video --device cpu --run-dir run"
    assert train.main([*tiny.split(), *run.split()]) == 0
    assert collect("--run run --name t/cart/ours-v0 --steps 10") == 0
    text = (tmp_path / "data/t/cart/ours-v0/data/metadata.json").read_text()
    assert "A policy of ppo at step 8." in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--name t/a", "one of --env and --run"),
        ("--env Pendulum-v1", "give --name"),
        ("--env Pendulum-v1 --name t/a --qualities good", "unknown 'good'"),
        ("--env Pendulum-v9 --name t/a", "Pendulum"),
        ("--run nowhere --name t/a-v0", "nowhere"),
        ("--env Pendulum-v1 --name t/a --steps 0", "--steps is 0"),
        ("--env Pendulum-v1 --name t/a --device gpu", "--device 'gpu' is unknown"),
    ],
)
def test_bad_input_is_one_line(flags, words, capsys):
    assert collect(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
