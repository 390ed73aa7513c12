"""Returns-to-go raised to a learned value: by hand, by the recursion, and a stitch that pays."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from decision_s4.agents.relabel import RelabelOptions, raised_labels, relabelled
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.trajectories import Trajectories

CPU = torch.device("cpu")


def trajectories(episodes: list[list[float]], terminate: list[bool], seen=None) -> Trajectories:
    """Episodes of the given rewards; observation k is k unless `seen` names them."""
    lengths = np.array([len(rewards) for rewards in episodes])
    rewards = np.concatenate(episodes).astype(np.float64)
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum(lengths) - 1] = terminate
    rows = lengths.sum() + len(lengths)
    observations = np.arange(rows) if seen is None else np.array(seen)
    return Trajectories(
        name="made up",
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
        action_space=spaces.Discrete(2),
        observations=observations.astype(np.float32)[:, None],
        actions=np.zeros(len(rewards), np.int64),
        rewards=rewards,
        terminations=ends,
        truncations=np.zeros(len(rewards), bool),
        lengths=lengths,
    )


def test_labels_by_hand():
    """Two episodes of rewards 1; the value of the middle observation of the first is 5."""
    data = trajectories([[1, 1], [1, 1]], [True, True])
    values = np.array([9.0, 5.0, 9.0, 0.0, 0.0, 9.0])  # a first or terminal one is never asked
    assert raised_labels(data, values).tolist() == [6, 1, 2, 1]


def test_the_value_after_a_cut_counts():
    data = trajectories([[1, 1]], [False])
    assert raised_labels(data, np.array([0.0, 0.0, 3.0])).tolist() == [5, 4]
    assert raised_labels(data, np.array([0.0, 0.0, -3.0])).tolist() == [2, 1]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_labels_follow_the_recursion(shapes, seed):
    draw = np.random.default_rng(seed)
    ends = [end for _, end in shapes]
    data = trajectories([list(draw.normal(size=length)) for length, _ in shapes], ends)
    values = draw.normal(size=data.num_steps + data.num_episodes)
    labels = raised_labels(data, values)
    for i, (first, last) in enumerate(pairwise(data.action_offsets)):
        after = 0.0 if ends[i] else max(0.0, values[last + i])
        for t in reversed(range(first, last)):
            assert labels[t] == pytest.approx(data.rewards[t] + after)
            after = max(labels[t], values[t + i])
    assert (labels >= data.returns_to_go() - 1e-9).all()


def test_a_poor_episode_that_meets_a_good_one_is_promised_its_return():
    """Episodes A: 0 → 1, then pays 0. B: 2 → 1, then pays 10. From 1 on both look the same."""
    data = trajectories([[0, 0], [0, 10]] * 20, [True] * 40, seen=[0, 1, 9, 2, 1, 9] * 20)
    options = RelabelOptions(relabel_rounds=1, relabel_steps=200)
    raised = relabelled(data, options, 0, CPU)
    labels = raised.returns_to_go()
    assert labels[0] == pytest.approx(5, abs=0.5)  # it got 0; from 1 on the mean is 5
    assert labels[2] == pytest.approx(10, abs=0.5)
    batch = next(PackedBatches(raised, 80, 0))
    assert batch.return_to_go.max().item() == pytest.approx(10, abs=0.5)
    assert sorted(batch.return_to_go[0].tolist()) == pytest.approx(sorted(labels.tolist()))


def test_without_rounds_nothing_changes():
    data = trajectories([[1, 1]], [True])
    assert relabelled(data, RelabelOptions(), 0, CPU) is data
