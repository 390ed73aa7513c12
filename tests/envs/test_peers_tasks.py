"""POPGym's and MiniGrid's environments by id: ours beside theirs, and training in theirs."""

import warnings

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from decision_s4 import evaluate, train
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make
from decision_s4.envs.memory.cards import CountRecall, RepeatFirst, RepeatPrevious

ROW = np.zeros(1, np.int64)
TINY = (
    "--algo ppo --steps 64 --rows 2 --rollout-steps 16 --epochs 1 --minibatches 1 --d-model 8 "
    "--eval-every 64 --eval-episodes 2 --no-video --device cpu"
)


def episode(env) -> tuple[list, list, list]:
    """What was seen, done and earned with random actions."""
    env.action_space.seed(0)
    seen, done, earned, over = [env.reset(seed=3)[0]], [], [], False
    while not over:
        done.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(done[-1])
        seen.append(observation)
        earned.append(reward)
        over = terminated or truncated
    return seen, done, earned


@pytest.mark.parametrize("task", [RepeatFirst, RepeatPrevious, CountRecall])
def test_a_card_game_is_popgyms_easy_one_card_for_card(task):
    pytest.importorskip("popgym", reason="extra 'memory' is not installed")
    theirs, ours = make(f"popgym-{task.__name__}Easy-v0"), task(1)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    seen, done, earned = episode(theirs)
    ours.reset(ROW, [np.random.default_rng(0)])
    dealt = ours.cards if task is CountRecall else ours.suits
    dealt[0] = seen  # the same deck
    outcomes = [ours.step(ROW, np.array([action])) for action in done]
    np.testing.assert_allclose([outcome.reward[0] for outcome in outcomes], earned, atol=1e-9)
    assert [outcome.terminated[0] for outcome in outcomes] == [False] * 50 + [True]


@pytest.mark.parametrize(
    ("package", "env_id"),
    [
        ("popgym", "popgym-RepeatPreviousEasy-v0"),  # Discrete
        ("popgym", "popgym-BattleshipEasy-v0"),  # MultiDiscrete actions
        ("popgym", "popgym-HigherLowerEasy-v0"),
        ("popgym", "popgym-NoisyPositionOnlyPendulumEasy-v0"),  # Box
        ("minigrid", "MiniGrid-MemoryS7-v0"),  # Dict
        ("minigrid", "MiniGrid-GoToDoor-5x5-v0"),  # a mission that changes
    ],
)
def test_it_trains_and_is_evaluated_in_environments_of_others(package, env_id, tmp_path, capsys):
    pytest.importorskip(package, reason="extra 'memory' is not installed")
    run = str(tmp_path / "run")
    assert train.main([*TINY.split(), "--env", env_id, "--run-dir", run]) == 0
    assert evaluate.main([run, "--episodes", "2", "--no-video"]) == 0
    assert env_id in capsys.readouterr().out


def test_a_grid_is_kinds_and_a_mission_its_number():
    pytest.importorskip("minigrid", reason="extra 'memory' is not installed")
    env = make("MiniGrid-GoToDoor-5x5-v0")
    assert env.observation_space["image"] == spaces.MultiDiscrete([[[11, 6, 4]] * 7] * 7)
    assert env.observation_space["mission"] == spaces.Discrete(6)
    numbers = {env.reset(seed=seed)[0]["mission"]: env.unwrapped.mission for seed in range(30)}
    assert len(numbers) == len(set(numbers.values())) == 6
    assert "mission" not in make("MiniGrid-MemoryS7-v0").observation_space.spaces
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)


def test_missions_in_sentences_are_refused():
    pytest.importorskip("minigrid", reason="extra 'memory' is not installed")
    with pytest.raises(UserError, match="which no encoder reads"):
        make("BabyAI-GoToRedBall-v0")
