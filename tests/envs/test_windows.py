"""Random windows: each step its own values, every beginning as likely, exact resume."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import Trajectories
from decision_s4.envs.windows import WindowBatches


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


def test_by_hand():
    batch = WindowBatches(synthetic([4, 2]), 3, 1, 0).windows(np.array([1, 2, 5]))
    assert batch.reward.tolist() == [[2, 3, 4], [3, 4, 0], [6, 0, 0]]
    assert batch.timestep.tolist() == [[1, 2, 3], [2, 3, 0], [1, 0, 0]]
    assert batch.return_to_go.tolist() == [[9, 7, 4], [7, 4, 0], [6, 0, 0]]
    assert batch.observation[..., 0].tolist() == [[1, 2, 3], [2, 3, 0], [6, 0, 0]]
    assert batch.action["a"].tolist() == [[7, 8, 9], [8, 9, 0], [11, 0, 0]]
    assert batch.previous_action["a"].tolist() == [[0, 7, 8], [0, 8, 0], [0, 0, 0]]
    assert batch.start.tolist() == [[True, False, False]] * 3
    assert batch.valid.tolist() == [[True] * 3, [True, True, False], [True, False, False]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20),
    st.integers(1, 15),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_each_step_has_its_own_values(lengths, window_steps, rows, seed):
    data = synthetic(lengths)
    batch = next(WindowBatches(data, window_steps, rows, seed))
    valid, to_go = batch.valid, data.returns_to_go()
    assert valid.shape == (rows, window_steps)
    step = batch.reward[valid].long().numpy() - 1
    episode = np.searchsorted(data.action_offsets, step, side="right") - 1
    np.testing.assert_array_equal(batch.timestep[valid], step - data.action_offsets[episode])
    np.testing.assert_array_equal(batch.observation[valid][:, 0], step + episode)
    np.testing.assert_array_equal(batch.return_to_go[valid], to_go[step])
    np.testing.assert_array_equal(batch.action["a"][valid], step + data.num_steps)
    before = np.where(batch.start[valid], 0, step + data.num_steps - 1)
    np.testing.assert_array_equal(batch.previous_action["a"][valid], before)
    for name in ("reward", "return_to_go", "timestep", "start"):
        assert not getattr(batch, name)[~valid].any()
    for row, ok in zip(batch.reward, valid, strict=True):  # consecutive, to the episode's end
        own = row[ok].long().numpy() - 1
        end = data.action_offsets[1:][np.searchsorted(data.action_offsets[1:], own[0], "right")]
        np.testing.assert_array_equal(own, np.arange(own[0], min(own[0] + window_steps, end)))
    assert batch.start[:, 0].all() and not batch.start[:, 1:].any()


def test_every_step_begins_a_window_equally_often():
    """So an episode is drawn in proportion to its length."""
    batch = next(WindowBatches(synthetic([1, 9]), 4, 20_000, seed=0))
    counts = np.bincount(batch.reward[:, 0].long())[1:]
    assert len(counts) == 10
    assert abs(counts / 20_000 - 0.1).max() < 0.01  # four standard deviations are 0.0085


def test_types_are_those_of_packed_batches():
    batch = next(WindowBatches(synthetic([3]), 2, 1, 0))
    assert batch.observation.dtype == batch.return_to_go.dtype == torch.float32
    assert batch.reward.dtype == batch.action["b"].dtype == torch.float32
    assert batch.action["a"].dtype == batch.timestep.dtype == torch.int64
    assert batch.start.dtype == batch.valid.dtype == torch.bool


def test_resume_is_exact():
    data = synthetic([3, 4, 5, 6, 7])
    through, resumed = WindowBatches(data, 4, 5, seed=5), WindowBatches(data, 4, 5, seed=6)
    for _ in range(7):
        next(through)
    resumed.load_state_dict(json.loads(json.dumps(through.state_dict())))
    for _ in range(9):
        assert torch.equal(next(through).reward, next(resumed).reward)


def test_batches_and_seeds_differ():
    data = synthetic([50])
    sampler = WindowBatches(data, 4, 20, seed=0)
    first, second = next(sampler).reward, next(sampler).reward
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(WindowBatches(data, 4, 20, seed=1)).reward)


@pytest.mark.parametrize("bad", [{"window_steps": 0}, {"rows": 0}, {"seed": -1}])
def test_bad_arguments_are_named(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(UserError, match=f"^{name} is {value}; use"):
        WindowBatches(synthetic([3]), **{"window_steps": 1, "rows": 1, "seed": 0} | bad)


def test_the_state_of_another_sampler_is_refused():
    with pytest.raises(UserError, match="keys"):
        WindowBatches(synthetic([3]), 1, 1, 0).load_state_dict({"seed": 0, "position": 0})
