"""Values from logged data: what a memory saw, a chain by hand, and policies in their true order."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents.actor import Actor
from decision_s4.agents.fqe import FQEOptions, fitted_q_value
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.probes.sanity import rank_correlation
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.hindsight import logged_actions
from decision_s4.envs.trajectories import Trajectories

LENGTH = 5


def walk(episodes: int = 200, seed: int = 0) -> Trajectories:
    """A point on a line moves by its action, drawn uniformly, and is paid by where it then is."""
    draw = np.random.default_rng(seed)
    actions = draw.uniform(-1, 1, (episodes, LENGTH, 1)).astype(np.float32)
    places = np.concatenate([np.zeros((episodes, 1, 1), np.float32), actions.cumsum(1)], 1)
    ends = np.tile(np.arange(LENGTH) == LENGTH - 1, episodes)
    return Trajectories(
        name="walk",
        observation_space=spaces.Box(-9, 9, (1,)),
        action_space=spaces.Box(-1, 1, (1,)),
        observations=places.reshape(-1, 1),
        actions=actions.reshape(-1, 1),
        rewards=places[:, 1:, 0].reshape(-1).astype(np.float64),
        terminations=ends,
        truncations=np.zeros_like(ends),
        lengths=np.full(episodes, LENGTH),
    )


class Always:
    """Does the same whatever it sees."""

    def __init__(self, action: float):
        self.action = action

    def initial_state(self, batch_size):
        return ()

    def act(self, step, state, deterministic=False):
        return torch.full((len(step.start), 1), self.action), state


def true_value(action: float, discount: float) -> float:
    """The walk lasts LENGTH steps; after t of them it is at t · action."""
    return sum(discount**t * (t + 1) * action for t in range(LENGTH))


def test_actions_are_those_of_the_policy_on_the_logged_past():
    torch.manual_seed(0)
    sizes = PolicyOptions("gru", d_model=8, n_layers=1, d_embed=4, return_scale=1.0)
    data = walk(7)
    policy = make_policy(data.observation_space, data.action_space, sizes).eval()
    found = logged_actions(Actor(policy), data, target_return=2.0, rows=3)
    assert found.shape == (7 * (LENGTH + 1), 1)
    batches = PackedBatches(data, 10**6, 0)
    batch = batches._batch(np.arange(7))
    asked = 2.0 - data.returns[np.repeat(np.arange(7), LENGTH)]
    batch.return_to_go.add_(torch.from_numpy(asked).float())
    with torch.no_grad():
        expected = policy.head.act(policy(batch)[0])[0].numpy()
    rows = data.observation_index(np.arange(data.num_steps))
    assert found[rows] == pytest.approx(expected, abs=1e-5)


def test_the_value_of_a_walk_by_hand():
    """Time is not observed, so the walk's end is known by chance only: termination is 1 in 5."""
    data, options = walk(), FQEOptions(updates=300, discount=0.0)
    assert fitted_q_value(Always(0.5), data, options=options) == pytest.approx(0.5, abs=0.1)
    assert fitted_q_value(Always(-0.5), data, options=options) == pytest.approx(-0.5, abs=0.1)


def test_policies_are_ranked_as_their_true_values_are():
    data, options = walk(), FQEOptions(updates=300, discount=0.8)
    actions = [-0.9, 0.6, -0.2, 0.9, 0.2]
    estimates = [fitted_q_value(Always(action), data, options=options) for action in actions]
    truths = [true_value(action, 0.8) for action in actions]
    ranks = rank_correlation(torch.tensor(estimates), torch.tensor(truths))
    assert ranks == pytest.approx(1)


def test_an_agent_may_have_no_state_at_all():
    class Forgetful(Always):
        def initial_state(self, batch_size):
            return None

    data = walk(4)
    lengths = np.array([2, 3, 2, 13])  # so that few rows are left at last
    uneven = dataclasses.replace(data, lengths=lengths, observations=data.observations[:24])
    assert (logged_actions(Forgetful(0.5), uneven) == 0.5).all()
