"""Trajectories: offsets, returns and statistics of two small episodes, by hand."""

import numpy as np
import pytest
from gymnasium import spaces

from decision_s4.envs import trajectories as module
from decision_s4.envs.spaces import leaf_spaces, leaves, map_tree, space_tree
from decision_s4.envs.trajectories import Trajectories


@pytest.fixture
def two_episodes() -> Trajectories:
    """Episodes of 2 and 3 steps; observation k is [k, 7]."""
    return Trajectories(
        name="two",
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Discrete(9),
        observations=np.stack([np.arange(7), np.full(7, 7)], axis=1).astype(np.float32),
        actions=np.arange(5),
        rewards=np.array([1.0, 2.0, 10.0, 20.0, 30.0]),
        terminations=np.array([False, True, False, False, False]),
        truncations=np.array([False, False, False, False, True]),
        lengths=np.array([2, 3]),
    )


def test_sizes_and_offsets(two_episodes):
    assert (two_episodes.num_steps, two_episodes.num_episodes) == (5, 2)
    assert two_episodes.action_offsets.tolist() == [0, 2, 5]


def test_returns(two_episodes):
    assert two_episodes.returns.tolist() == [3.0, 60.0]
    assert two_episodes.returns_to_go().tolist() == [3.0, 2.0, 60.0, 50.0, 30.0]


def test_each_step_acts_on_its_own_observation(two_episodes):
    assert two_episodes.observation_index(np.arange(5)).tolist() == [0, 1, 3, 4, 5]
    assert two_episodes.observation_index(2) == 3


def test_an_episode_has_one_observation_more_than_actions(two_episodes):
    episode = two_episodes.episode(1)
    assert episode.observations[:, 0].tolist() == [3, 4, 5, 6]
    assert episode.actions.tolist() == [2, 3, 4]
    assert episode.truncations.tolist() == [False, False, True]
    assert not episode.terminations.any()
    with pytest.raises(IndexError, match=r"episode 2 is outside 0 … 1"):
        two_episodes.episode(2)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_statistics_leave_out_final_observations(two_episodes, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_STEPS", chunk)
    mean, std = two_episodes.observation_statistics()
    acted_on = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(mean, [acted_on.mean(), 7])
    np.testing.assert_allclose(std, [acted_on.std(), 1])  # the constant feature is only centred


def test_summary_is_one_line(two_episodes):
    assert two_episodes.summary() == (
        "two: 2 episodes, 5 steps, return 31.5 ± 28.5 (3.0 … 60.0), environment unknown"
    )


def test_spaces_become_trees():
    space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "hand": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]),
        }
    )
    assert [name for name, _ in leaves(leaf_spaces(space))] == ["eye", "hand/0", "hand/1"]
    tree = space_tree(space, space.sample())
    assert map_tree(np.shape, tree) == {"eye": (4, 4, 3), "hand": {"0": (), "1": (2,)}}


def test_a_space_without_an_array_is_refused():
    with pytest.raises(ValueError, match=r"space Text.* is not supported; use Box, Discrete"):
        leaf_spaces(spaces.Dict({"word": spaces.Text(4)}))
