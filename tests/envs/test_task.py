"""Where a policy is evaluated: chosen from the dataset, the flags and what is known of it."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from decision_s4.envs.errors import UserError
from decision_s4.envs.scores import ReferenceScores
from decision_s4.envs.task import Task, task_of, with_environment
from decision_s4.envs.trajectories import Trajectories


def trajectories(env_id: str | None, observations: int, actions: int, rewards=(3.0, 5.0), **about):
    """Two episodes of one step each."""
    return Trajectories(
        name="two",
        observation_space=spaces.Box(-np.inf, np.inf, (observations,)),
        action_space=spaces.Box(-1, 1, (actions,)),
        env_id=env_id,
        observations=np.zeros((4, observations)),
        actions=np.zeros((2, actions)),
        rewards=np.array(rewards),
        terminations=np.ones(2, bool),
        truncations=np.zeros(2, bool),
        lengths=np.ones(2, np.int64),
        **about,
    )


HOPPER = trajectories("Hopper-v5", 11, 3)
PENDULUM = trajectories(None, 3, 1)


def test_the_datasets_own_environment_targets_and_scale():
    task = task_of(HOPPER)
    assert (task.env_id, task.target_returns) == ("Hopper-v5", (3600.0, 1800.0))
    assert (task.reference.minimum, task.reference.maximum) == (-20.272305, 3234.3)
    assert task.summary() == "Hopper-v5, target returns 3600, 1800"
    assert task.scale() == "D4RL scale hopper: 0 = -20.27 (random), 100 = 3234.30 (expert)"


def test_the_datasets_own_scale_goes_first():
    task = task_of(trajectories("Hopper-v5", 11, 3, reference_scores=(0.0, 10.0)))
    assert (task.reference.minimum, task.reference.maximum) == (0.0, 10.0)


@pytest.mark.parametrize(
    ("rewards", "targets"),
    [
        ((3.0, 5.0), (5.0, 2.5)),
        ((-8.0, -4.0), (-4.0, -6.0)),
        ((0.0, 0.0), (0.0,)),
        ((1504.9534, 1), (1505, 752.5)),
    ],
)
def test_targets_from_the_data(rewards, targets):
    """The best return and its half, or the mean below 0; four digits; none of them twice."""
    task = task_of(trajectories(None, 3, 1, rewards), "Pendulum-v1")
    assert task.target_returns == targets
    assert task.reference is None
    assert task.scale() == "none: no reference returns known"


def test_no_environment():
    for task in (task_of(PENDULUM), task_of(PENDULUM, "none")):
        assert task == Task(None, (5.0, 2.5))
        assert task.evaluate(agent=None, episodes=1, seed=0) == []
        assert task.summary() == "no evaluation here; later: evaluate.py with --env"
    assert task_of(HOPPER, "none") == Task(None, (3600.0, 1800.0))


def test_given_targets_go_before_all_others():
    assert task_of(HOPPER, None, (7.0, 7.0, -1.0)).target_returns == (7.0, -1.0)


def test_an_environment_that_does_not_fit_names_a_way_out():
    with pytest.raises(UserError, match=r"Box\(17,\), the dataset Box\(11,\).*; --env none trains"):
        task_of(HOPPER, "HalfCheetah-v5")
    with pytest.raises(UserError, match=r"'Hoper-v5' is not registered.*\? --env none trains"):
        task_of(trajectories("Hoper-v5", 11, 3))


def test_environment_arguments_belong_to_their_environment():
    data = trajectories("Hopper-v5", 11, 3, env_kwargs={"reset_noise_scale": 0.0})
    task = task_of(data)
    assert task.env_kwargs == {"reset_noise_scale": 0.0}
    assert with_environment(task, None, ()) == task
    moved = with_environment(task, "Walker2d-v5", (1.0,))
    assert (moved.env_kwargs, moved.target_returns) == ({}, (1.0,))
    assert moved.reference.source == "D4RL scale walker2d"


@pytest.mark.parametrize(
    "task",
    [
        Task(None, (1.0,)),
        Task("Hopper-v5", (3.0, 1.5), {"a": 1}, ReferenceScores(0.0, 2.0, "ours")),
        Task("Hopper-v5", (3.0, 1.5), return_range=(1.0, 2.0), learned_steps=20),
    ],
)
def test_a_description_comes_back(task):
    assert Task.from_description(task.describe()) == task


def test_a_description_from_before_ranges_holds_nothing():
    description = Task("Hopper-v5", (3.0,), return_range=(1.0, 2.0), learned_steps=9).describe()
    del description["return_range"], description["learned_steps"]
    assert Task.from_description(description).aims == (3.0,)
    assert Task.from_description(description).learned_steps is None


def test_targets_are_held_to_the_range_of_returns():
    task = Task("Hopper-v5", (12000.0, 6000.0, 100.0, -900.0), return_range=(-371.25, 3953.04))
    assert task.aims == (3953.04, 3953.04, 100.0, -371.25)
    assert task.held() == [
        "asked for 12000, the best logged episode returned 3953: asking for that",
        "asked for 6000, the best logged episode returned 3953: asking for that",
        "asked for -900, the poorest logged episode returned -371.25: asking for that",
    ]
    assert Task("Hopper-v5", (12000.0, None)).aims == (12000.0, None)
    assert with_environment(task, None, (5000.0,)).aims == (3953.04,)
    known = replace(task, learned_steps=7)
    assert with_environment(known, None, (5000.0,)).learned_steps == 7


def test_a_held_target_is_asked_for_less_and_named_as_it_was_asked():
    asked = []

    class Listener:
        def initial_state(self, batch_size):
            return None

        def act(self, step, state, deterministic=False):
            asked.extend(step.return_to_go[step.start].tolist())
            return np.zeros(len(step.start), np.int64), state

    rows = Task("CartPole-v1", (90.0, 70.0, 20.0), return_range=(5.0, 30.0)).evaluate(
        Listener(), episodes=2, seed=0
    )
    assert asked == [30.0, 30.0, 20.0, 20.0]
    assert [row["target_return"] for row in rows] == [90.0, 70.0, 20.0]
    assert rows[0]["return_mean"] == rows[1]["return_mean"]


def test_what_cannot_be_evaluated():
    with pytest.raises(UserError, match="names no environment; give one with --env"):
        with_environment(Task(None, (1.0,)), None, ())
    with pytest.raises(UserError, match="names no environment; give one with --env"):
        with_environment(Task("Hopper-v5", (1.0,)), "none", ())
    with pytest.raises(UserError, match="names no target returns; give some, as --target-returns"):
        with_environment(Task("Hopper-v5", ()), None, ())


def test_progress_reports_every_time_step():
    class Pusher:
        def initial_state(self, batch_size):
            return None

        def act(self, step, state, deterministic=False):
            return np.zeros(len(step.start), np.int64), state

    seen = []
    (row,) = Task("CartPole-v1", (1.0,)).evaluate(Pusher(), 3, 0, lambda *at: seen.append(at))
    assert [time for time, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] == 0
    assert row["episodes"] == 3
    assert row["normalized_score"] is None
