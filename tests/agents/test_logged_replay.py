"""A replay of logged trajectories: what lies in it, and which states belong to it."""

import numpy as np
import torch
from gymnasium import spaces
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from decision_s4.agents.logged_replay import remember
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.replay import Replay, this_step
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import WholeState
from decision_s4.envs.trajectories import Trajectories

OBSERVATION = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)


def logged() -> Trajectories:
    """Two steps that terminate, then three that are cut off."""
    return Trajectories(
        name="two",
        observation_space=OBSERVATION,
        action_space=ACTION,
        observations=np.arange(7, dtype=np.float32)[:, None],
        actions=np.linspace(-1, 1, 5, dtype=np.float32)[:, None],
        rewards=np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        terminations=np.array([False, True, False, False, False]),
        truncations=np.zeros(5, bool),
        lengths=np.array([2, 3]),
    )


def filled() -> tuple[SequencePolicy, Replay]:
    torch.manual_seed(0)
    sizes = PolicyOptions("gru", d_model=8, n_layers=2, d_embed=4)
    policy, replay = SequencePolicy(OBSERVATION, ACTION, sizes).eval(), Replay(10)
    remember(replay, logged(), policy, WholeState(policy), target=10.0)
    return policy, replay


def test_logged_steps_lie_there_as_they_were_longest_episode_first():
    _, replay = filled()
    kept = replay.recent(5)
    assert kept.observation.ravel().tolist() == [3, 0, 4, 1, 5]
    assert kept.next_observation.ravel().tolist() == [4, 1, 5, 2, 6]
    assert kept.action.ravel().tolist() == [0, -1, 0.5, -0.5, 1]
    assert kept.previous_action.ravel().tolist() == [0, 0, 0, -1, 0.5]
    assert kept.return_to_go.tolist() == [10, 10, 7, 9, 3]
    assert kept.next_return_to_go.tolist() == [7, 9, 3, 7, -2]
    assert kept.terminated.tolist() == [False, False, False, True, False]
    assert kept.start.tolist() == [True, True, False, False, False]


def test_their_states_are_those_of_the_policy_that_reads_them():
    policy, replay = filled()
    for episode in ([0, 2, 4], [1, 3]):
        state = policy.initial_state(1)
        for slot in episode:
            kept = tree_map(lambda leaf, i=slot: leaf[i : i + 1], replay.store)
            assert_close(kept.state, state)
            with torch.no_grad():
                _, state = policy.step(this_step(kept), state)
            assert_close(kept.next_state, state)
