"""Packed batches: every step once an epoch, each value its own, exact resume."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import Trajectories


def synthetic(lengths: list[int]) -> Trajectories:
    """Every number tells its step n: reward n + 1, action N + n; observation row k is [k, -k]."""
    lengths = np.array(lengths)
    steps, rows = lengths.sum(), lengths.sum() + len(lengths)
    return Trajectories(
        name="synthetic",
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Dict({"a": spaces.Discrete(10_000), "b": spaces.Box(-1, 1, (1,))}),
        observations=np.outer(np.arange(rows), [1, -1]).astype(np.float64),
        actions={"a": np.arange(steps) + steps, "b": np.arange(steps, dtype=np.float32)[:, None]},
        rewards=np.arange(1.0, steps + 1),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        lengths=lengths,
    )


def one_epoch(sampler: PackedBatches):
    epoch = sampler.epoch
    while True:
        batch = next(sampler)
        if sampler.epoch != epoch:
            return
        yield batch


lists_of_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(lists_of_lengths, st.integers(1, 40), st.integers(0, 3), st.integers(1, 4))
def test_each_step_comes_once_an_epoch_with_its_own_values(lengths, batch_steps, seed, rows):
    data = synthetic(lengths)
    to_go, seen = data.returns_to_go(), []
    for batch in one_epoch(PackedBatches(data, batch_steps, seed, rows)):
        valid = batch.valid
        step = batch.reward[valid].long() - 1
        seen += step.tolist()
        episode = np.searchsorted(data.action_offsets, step, side="right") - 1
        first = data.action_offsets[episode]
        start = step.numpy() == first
        np.testing.assert_array_equal(batch.timestep[valid], step - first)
        np.testing.assert_array_equal(batch.start[valid], start)
        np.testing.assert_array_equal(batch.observation[valid][:, 0], step + episode)
        np.testing.assert_array_equal(batch.return_to_go[valid], to_go[step])
        np.testing.assert_array_equal(batch.action["a"][valid], step + data.num_steps)
        before = np.where(start, 0, step + data.num_steps - 1)
        np.testing.assert_array_equal(batch.previous_action["a"][valid], before)
        assert valid.shape[0] == rows
        assert not batch.reward[~valid].any() and not batch.observation[~valid].any()
    assert sorted(seen) == list(range(data.num_steps))


@settings(max_examples=60, deadline=None)
@given(lists_of_lengths, st.integers(1, 40), st.integers(1, 4))
def test_rows_hold_whole_episodes(lengths, batch_steps, rows):
    for batch in one_epoch(PackedBatches(synthetic(lengths), batch_steps, 0, rows)):
        for start, valid in zip(batch.start, batch.valid, strict=True):
            steps = int(valid.sum())
            assert valid[:steps].all()  # padding is at the right end
            assert steps == 0 or start[0]


def test_one_row_has_no_padding_and_enough_steps():
    data = synthetic([5, 5, 5, 5, 3])
    batches = list(one_epoch(PackedBatches(data, 8, 0)))
    assert all(batch.valid.all() for batch in batches)
    assert [batch.valid.shape[1] >= 8 for batch in batches[:-1]] == [True] * (len(batches) - 1)


def test_a_small_remainder_joins_the_last_batch():
    batches = list(one_epoch(PackedBatches(synthetic([2] * 9), 8, 0)))
    assert [batch.valid.shape[1] for batch in batches] == [8, 10]


def test_types():
    batch = next(PackedBatches(synthetic([3]), 1, 0))
    assert batch.observation.dtype == batch.return_to_go.dtype == torch.float32
    assert batch.reward.dtype == batch.action["b"].dtype == torch.float32
    assert batch.action["a"].dtype == batch.timestep.dtype == torch.int64
    assert batch.start.dtype == batch.valid.dtype == torch.bool


def test_resume_is_exact():
    data = synthetic([3, 4, 5, 6, 7])
    through, resumed = PackedBatches(data, 9, seed=5), PackedBatches(data, 9, seed=6)
    for _ in range(7):
        next(through)
    resumed.load_state_dict(json.loads(json.dumps(through.state_dict())))
    for _ in range(9):
        assert torch.equal(next(through).reward, next(resumed).reward)


def test_epochs_and_seeds_differ():
    data = synthetic([1] * 50)
    sampler = PackedBatches(data, 50, seed=0)
    first, second = next(sampler).reward, next(sampler).reward
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(PackedBatches(data, 50, seed=1)).reward)


@pytest.mark.parametrize("bad", [{"batch_steps": 0}, {"seed": -1}, {"rows": 0}])
def test_bad_arguments_are_named(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; use"):
        PackedBatches(synthetic([3]), **{"batch_steps": 1, "seed": 0, "rows": 1} | bad)


def test_a_state_of_another_dataset_is_refused():
    sampler = PackedBatches(synthetic([3, 3]), 1, 0)
    with pytest.raises(UserError, match="at episode 3 of 2; resume with the dataset"):
        sampler.load_state_dict({"seed": 0, "epoch": 0, "position": 3})
    with pytest.raises(UserError, match="keys"):
        sampler.load_state_dict({"seed": 0})
