"""A feature masked in the loop: nothing masked is the plain policy, row by row."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from decision_s4.agents.actor import Actor
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.probes.closed_loop import MaskedAgent, Worth, worth_of_inputs
from decision_s4.agents.probes.recordings import made, play
from decision_s4.envs.rollout import rollout
from decision_s4.envs.task import Task
from decision_s4.envs.timestep import TimeStep

NAMES = [f"f{i}" for i in range(1 + 4 + 2)]


def test_nothing_masked_is_the_plain_policy(cartpole):
    task = Task("CartPole-v1", (100.0,))
    recordings = play(cartpole, task, 2, 0, 50)
    found = worth_of_inputs(cartpole, task, recordings, NAMES, 2, 5, 50, workers=1)
    plain = rollout(Actor(cartpole), "CartPole-v1", [100.0] * 2, [5, 6], max_steps=50, workers=1)
    assert found.returns.shape == (8, 2)
    assert found.returns[0].tolist() == plain.returns.tolist()
    assert found.table().rows[0][0] == "nothing"


def test_a_policy_that_reads_one_feature_loses_by_that_alone(cartpole):
    """Pushing to where the pole leans keeps it up a while; nothing else is read."""
    leaning = Leaning(cartpole)
    task = Task("CartPole-v1", (100.0,))
    recordings = play(cartpole, task, 2, 0, 50)
    found = worth_of_inputs(leaning, task, recordings, NAMES, 3, 5, 60, workers=1)
    assert found.losses[3] > 3
    means = found.returns.mean(1)
    needs = f"What it needs most: without {NAMES[3]} it returns {means[4]:.0f}, not {means[0]:.0f}."
    assert found.summary() == needs
    assert [loss for i, loss in enumerate(found.losses) if i != 3] == [0.0] * 6


def moment(observation, previous_action, to_go, start):
    no = torch.zeros_like(start)
    return TimeStep(observation, previous_action, torch.zeros_like(to_go), to_go, start, no, no)


def test_no_input_is_called_needed_whose_loss_is_chance_or_next_to_nothing():
    returns = np.array(
        [[10.0, 10, 10, 10], [12, 7, 11, 8], [2, 4, 3, 3], [5, 6, 5, 4], [9.9, 9.9, 9.9, 9.9]]
    )
    worth = Worth(["nothing", "a", "b", "c", "d"], returns)
    expected = "What it needs most: without b it returns 3, not 10; then c (5)."
    assert worth.summary() == expected
    assert worth.summary(", asked for 9").startswith("What it needs most, asked for 9: without b")
    assert Worth(["nothing", "a"], returns[:2]).summary().startswith("No single input's absence")


@pytest.mark.parametrize("mode", ["recurrent", "recompute"])
def test_a_policy_masked_in_all_plays_the_other_episode(mode):
    """Step by step, whatever its own environment does."""
    torch.manual_seed(0)
    spaces = Box(-np.inf, np.inf, (4,)), Box(-1, 1, (2,))
    options = PolicyOptions(d_model=8, n_layers=1, d_embed=8, context_mode=mode, context_steps=4)
    policy = make_policy(*spaces, options).eval()
    observation, to_go, start = torch.randn(9, 4), torch.linspace(100, 92, 9), torch.arange(9) == 0
    action, state = torch.zeros(9, 2), Actor(policy).initial_state(1)
    for t in range(9):
        row = slice(t, t + 1)
        before = action[t - 1 : t] if t else torch.zeros(1, 2)
        step = moment(observation[row], before, to_go[row], start[row])
        action[row], state = Actor(policy).act(step, state)
    fill = made(policy, "", observation, action, to_go, torch.zeros(9)).features[None]
    agent = MaskedAgent(policy, torch.ones(1, 7, dtype=torch.bool), fill)
    state = agent.initial_state(1)
    for t in range(9):
        nothing = torch.zeros(1, 4), torch.zeros(1, 2), torch.zeros(1), start[t : t + 1]
        played, state = agent.act(moment(*nothing), state)
        torch.testing.assert_close(played[0], action[t])


class Leaning:
    """Acts by the pole's angle, feature 3 of all."""

    def __init__(self, policy):
        self.policy, self.head = policy, self
        self.token_map, self.initial_state = policy.token_map, policy.initial_state

    def step(self, step, state):
        inputs = step.return_to_go, step.observation, step.previous_action
        return self.policy.tapped_inputs(*inputs)[1][:, 2], state

    def act(self, angle, deterministic):
        return (angle > 0).long()
