"""Reference scores, their precedence, and the statistics of a table, by hand."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decision_s4.envs.errors import UserError
from decision_s4.envs.scores import (
    D4RL_SCORES,
    MUJOCO_SCORES,
    ReferenceScores,
    d4rl_task,
    default_target_returns,
    normalized_score,
    reference_scores,
)
from decision_s4.envs.statistics import (
    Evaluation,
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_resamples,
)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Hopper-v2", "hopper"),
        ("Hopper-v5", "hopper"),
        ("HalfCheetah-v5", "halfcheetah"),
        ("Ant-v4", "ant"),
        ("hopper-medium-replay-v2", "hopper"),
        ("mujoco/hopper/medium-v0", "hopper"),
        ("gym/walker2d/expert-v0", "walker2d"),
        ("hopper/medium-v0", "hopper"),
        ("AdroitHandDoor-v1", "door"),
        ("D4RL/door/human-v2", "door"),
        ("pen-cloned-v1", "pen"),
        ("FrankaKitchen-v1", "kitchen"),
        ("kitchen-complete-v0", "kitchen"),
        ("antmaze-umaze-diverse-v2", "antmaze"),
        ("maze2d-umaze-v1", "maze2d-umaze"),
        ("maze2d-umaze-dense-v1", "maze2d-umaze-dense"),
        # other rewards, other time limits, other robots: another scale
        ("D4RL/antmaze/umaze-v1", None),
        ("AntMaze_UMaze-v4", None),
        ("PointMaze_UMaze-v3", None),
        ("AdroitHandDoorSparse-v1", None),
        ("bullet-hopper-medium-v0", "bullet-hopper"),
        ("bullet-maze2d-umaze-v0", "bullet-maze2d-umaze"),
        ("flow-ring-controller-v0", "flow-ring"),
        ("carla-town-v0", "carla-town"),
        ("HopperBulletEnv-v0", None),
        ("CartPole-v1", None),
        ("", None),
    ],
)
def test_task_of_a_name(name, task):
    assert d4rl_task(name) == task


def test_given_scores_go_before_the_datasets_and_those_before_the_table():
    assert reference_scores("Hopper-v5", (0, 1), (2, 3)) == ReferenceScores(2, 3, "given scale")
    stored = reference_scores("Hopper-v5", (0, 1))
    assert (stored.minimum, stored.maximum) == (0, 1)
    assert reference_scores("Hopper-v5").maximum == 3234.3
    assert reference_scores("CartPole-v1") is None


def test_ends_of_the_scale():
    hopper = reference_scores("Hopper-v5")
    assert normalized_score(-20.272305, hopper) == 0
    assert normalized_score(3234.3, hopper) == 100
    assert normalized_score(np.array([1607.0138475]), hopper) == pytest.approx([50])


def test_description():
    line = "D4RL scale hopper: 0 = -20.27 (random), 100 = 3234.30 (expert)"
    assert reference_scores("Hopper-v5").describe() == line


@pytest.mark.parametrize("scores", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_a_scale_needs_two_finite_ends_in_order(scores):
    with pytest.raises(UserError, match="reference scores"):
        reference_scores("Hopper-v5", scores)


@pytest.mark.parametrize("scores", [(1,), (1, 2, 3), ("a", 2)])
def test_a_scale_needs_two_numbers(scores):
    with pytest.raises(UserError, match="two finite returns"):
        reference_scores("Hopper-v5", user_scores=scores)


def test_every_scale_is_a_scale():
    for task, (low, high) in (D4RL_SCORES | MUJOCO_SCORES).items():
        assert low < high, task


@pytest.mark.parametrize("name", ["Swimmer-v5", "Swimmer-v4", "mujoco/swimmer/medium-v0"])
def test_gymnasiums_other_tasks_have_a_scale_of_ours(name):
    assert reference_scores(name).describe() == (
        "our scale swimmer: 0 = -1.87 (random), 100 = 360.00 (expert)"
    )


@pytest.mark.parametrize("task", sorted(MUJOCO_SCORES.keys() - {"humanoid"}))
def test_the_solved_returns_are_gymnasiums(task):
    ids = {env_id.lower(): env_id for env_id in gym.registry}
    assert gym.spec(ids[f"{task}-v5"]).reward_threshold == MUJOCO_SCORES[task][1]


def test_default_targets():
    assert default_target_returns("Hopper-v5") == (3600, 1800)
    assert default_target_returns("HalfCheetah-v5") == (12000, 6000)
    assert default_target_returns("Walker2d-v5") == (5000, 2500)
    assert default_target_returns("CartPole-v1") is None


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([7], 7),
        ([1, 2, 6], 3),  # a quarter of 3, rounded down, is none
        ([100, 1, 2, -100], 1.5),
        ([1000, 1, 2, 3, 4, 5, 6, 7], 4.5),  # sorted 1 … 7, 1000: the middle four are 3, 4, 5, 6
    ],
)
def test_interquartile_mean(values, mean):
    assert interquartile_mean(values) == mean


def test_interval_of_equal_values_has_no_width():
    assert bootstrap_interval([3.0, 3.0, 3.0]) == (3, 3)
    assert bootstrap_interval([5.0]) == (5, 5)


def test_interval_of_a_coin():
    """The mean of 100 fair coins has standard deviation 0.05: the interval is 0.5 ± 0.098."""
    low, high = bootstrap_interval([0.0, 1.0] * 50)
    assert low == pytest.approx(0.402, abs=0.012)
    assert high == pytest.approx(0.598, abs=0.012)
    assert (low, high) == bootstrap_interval([0.0, 1.0] * 50)


def test_tasks_are_resampled_each_by_itself():
    assert bootstrap_interval(np.array([[0.0, 100.0]] * 5)) == (50, 50)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_statistics_lie_within_the_values(values):
    slack = 1e-9 * (1 + max(map(abs, values)))
    low, high = bootstrap_interval(values, resamples=50)
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert min(values) - slack <= interquartile_mean(values) <= max(values) + slack


def test_row_of_an_evaluation():
    row = Evaluation(
        target_return=3600.0, returns=np.array([0.0, 2.0]), lengths=np.array([10, 20])
    ).row()
    assert list(row) == [
        "target_return",
        "episodes",
        "return_mean",
        "return_std",
        "return_iqm",
        "return_ci_low",
        "return_ci_high",
        "normalized_score",
        "length_mean",
    ]
    assert row["return_mean"] == row["return_std"] == row["return_iqm"] == 1
    assert (row["return_ci_low"], row["return_ci_high"]) == (0, 2)
    assert row["normalized_score"] is None
    assert row["length_mean"] == 15


def test_probability_of_improvement_by_hand():
    """Of 2 × 2 pairs on the first task 3 are won and 1 is a tie; of 2 × 2 on the second none."""
    ours, theirs = [[3.0, 0.0], [5.0, 0.0]], [[2.0, 1.0], [3.0, 1.0]]
    assert probability_of_improvement(ours, theirs) == pytest.approx((3.5 / 4 + 0) / 2)
    assert probability_of_improvement(ours, ours) == 0.5
    assert probability_of_improvement([[1.0]] * 3, [[0.0]]) == 1  # any numbers of runs


def test_performance_profile_by_hand():
    scores = [[10.0, 20.0], [30.0, 40.0]]
    assert performance_profile(scores, [0, 10, 25, 40]).tolist() == [1.0, 0.75, 0.5, 0.0]


def test_resamples_keep_tasks_apart():
    for sample in stratified_resamples([[1.0, 10.0], [2.0, 20.0]], 20):
        assert set(sample[:, 0]) <= {1, 2}
        assert set(sample[:, 1]) <= {10, 20}
