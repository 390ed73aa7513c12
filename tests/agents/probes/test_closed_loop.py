"""A feature masked in the loop: nothing masked is the plain policy, row by row."""

from decision_s4.agents.actor import Actor
from decision_s4.agents.probes.closed_loop import worth_of_inputs
from decision_s4.agents.probes.recordings import play
from decision_s4.envs.rollout import rollout
from decision_s4.envs.task import Task

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
    assert [loss for i, loss in enumerate(found.losses) if i != 3] == [0.0] * 6


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
