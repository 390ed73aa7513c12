"""Single transitions: both observations, one probability, what lacks its end left out."""

import dataclasses
import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import Trajectories
from decision_s4.envs.transitions import TransitionBatches
from decision_s4.envs.windows import WindowBatches


def synthetic(lengths: list[int], **changes) -> Trajectories:
    """Step n of N has action n and reward n; observation row k is k; the last step terminates."""
    steps, rows = sum(lengths), sum(lengths) + len(lengths)
    ends = np.zeros(steps, bool)
    ends[np.cumsum(lengths) - 1] = True
    data = Trajectories(
        name="synthetic",
        observation_space=spaces.Box(-np.inf, np.inf, ()),
        action_space=spaces.Discrete(10_000),
        observations=np.arange(rows, dtype=np.float64),
        actions=np.arange(steps),
        rewards=np.arange(steps, dtype=np.float64),
        terminations=ends,
        truncations=np.zeros(steps, bool),
        lengths=np.array(lengths),
    )
    return dataclasses.replace(data, **changes)


def test_a_transition_has_the_observations_around_its_action():
    sampler = TransitionBatches(synthetic([2, 3]), 1, 0)
    batch = sampler.transitions(np.array([0, 1, 2, 4]), np.array([0, 0, 1, 1]))
    assert batch.observation.tolist() == [0, 1, 3, 5]
    assert batch.next_observation.tolist() == [1, 2, 4, 6]
    assert batch.action.tolist() == batch.reward.tolist() == [0, 1, 2, 4]
    assert batch.terminated.tolist() == [False, True, False, True]


def test_every_transition_is_as_likely():
    drawn = next(TransitionBatches(synthetic([1, 9]), 20_000, 0)).action.numpy()
    assert np.abs(np.bincount(drawn, minlength=10) - 2000).max() < 200


def test_an_end_whose_observation_is_unknown_is_left_out_unless_it_terminates():
    ends = np.array([False, True, False, False])
    data = synthetic([2, 2], terminations=ends, final_observation_known=False)
    drawn = next(TransitionBatches(data, 500, 0)).action.tolist()
    assert set(drawn) == {0, 1, 2}


def test_data_of_nothing_but_unknown_ends_is_refused():
    data = synthetic([1, 1], final_observation_known=False)
    with pytest.raises(UserError, match="no transition"):
        TransitionBatches(data, 4, 0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.floats(0.01, 1), st.integers(0, 99))
def test_a_fraction_of_the_data_is_its_best_episodes_whatever_samples(lengths, fraction, seed):
    data = synthetic(lengths)
    best = data.best_episodes(fraction)
    allowed = {n for i in best for n in range(*data.action_offsets[i : i + 2])}
    samplers = [
        PackedBatches(data, 10, seed, episodes=best),
        WindowBatches(data, 3, 20, seed, episodes=best),
        TransitionBatches(data, 20, seed, episodes=best),
    ]
    for sampler in samplers:
        batch = next(sampler)
        assert set(batch.action[batch.valid].tolist()) <= allowed
        sampler.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert len(best) == max(1, round(fraction * len(lengths)))
    left = np.setdiff1d(np.arange(len(lengths)), best)
    assert not len(left) or data.returns[left].max() <= data.returns[best].min()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(size):
    data = synthetic([4, 3, 2, 5])
    whole = next(PackedBatches(data, 10, 0)).action[0].tolist()
    parts = [next(PackedBatches(data, 10, 0, share=(i, size))) for i in range(size)]
    assert sorted(n for part in parts for n in part.action[part.valid].tolist()) == sorted(whole)
    windows = next(WindowBatches(data, 1, 12, 0)).action[:, 0]
    for i in range(size):
        share = next(WindowBatches(data, 1, 12, 0, share=(i, size)))
        assert share.action[:, 0].tolist() == windows[i::size].tolist()


def test_a_share_of_nothing_has_no_valid_step():
    assert not next(PackedBatches(synthetic([9, 9]), 5, 0, share=(1, 2))).valid.any()


def test_the_best_episodes_by_hand():
    data = synthetic([1, 1, 1, 1], rewards=np.array([5.0, 7.0, 7.0, 1.0]))
    assert data.best_episodes(0.25).tolist() == [1]
    assert data.best_episodes(0.5).tolist() == [1, 2]
    assert data.best_episodes(0.75).tolist() == [0, 1, 2]
    assert data.best_episodes(1e-9).tolist() == [1]


def test_a_resumed_sampler_goes_on_where_it_stood():
    data = synthetic([5, 3])
    through, resumed = TransitionBatches(data, 7, 5), TransitionBatches(data, 7, 6)
    next(through)
    resumed.load_state_dict(through.state_dict())
    for _ in range(3):
        assert next(through).action.tolist() == next(resumed).action.tolist()
    with pytest.raises(UserError, match="sampler state"):
        resumed.load_state_dict({"epoch": 0})
