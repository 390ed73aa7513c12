"""A learned value in packed rows: targets by hand, its pull, and an exact resume."""

import copy
from types import SimpleNamespace

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from decision_s4.agents.decision import OptimiserOptions
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.value_regularised import (
    ValueRegularisation,
    ValueRegularisedLearner,
    packed_targets,
)
from decision_s4.envs.errors import UserError

ROWS, STEPS = 16, 6


def new_learner(action_space=None, **regularisation) -> ValueRegularisedLearner:
    torch.manual_seed(0)
    sizes = PolicyOptions("s4d", d_model=16, n_layers=1, d_embed=8, return_scale=1.0)
    policy = SequencePolicy(Box(-1, 1, (1,)), action_space or Box(-1, 1, (1,)), sizes)
    rates = OptimiserOptions(learning_rate=1e-2, warmup_steps=1, schedule="constant")
    given = {"critic_width": 32, "critic_learning_rate": 1e-2} | regularisation
    return ValueRegularisedLearner(policy, rates, 300, ValueRegularisation(**given))


def batch_of(action: torch.Tensor, reward: torch.Tensor) -> SimpleNamespace:
    """Episodes of STEPS steps, one a row; observation and return-to-go tell nothing."""
    start = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=torch.zeros(ROWS, STEPS, 1),
        previous_action=torch.zeros(ROWS, STEPS, 1),
        return_to_go=torch.zeros(ROWS, STEPS),
        action=action,
        reward=reward,
        terminated=start.roll(-1, 1),
        start=start,
        valid=torch.ones(ROWS, STEPS, dtype=torch.bool),
    )


def bandit() -> SimpleNamespace:
    """Uniform actions; the best one is 0.5, their mean is 0."""
    action = 2 * torch.rand(ROWS, STEPS, 1) - 1
    return batch_of(action, 1 - (action[..., 0] - 0.5).square())


def test_packed_targets_by_hand():
    """A row of two episodes and padding: 0 1 | 2 3 | -; the first terminates, the second is cut."""
    row = SimpleNamespace(
        reward=torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0]]),
        terminated=torch.tensor([[False, True, False, False, False]]),
        start=torch.tensor([[True, False, True, False, False]]),
        valid=torch.tensor([[True, True, True, True, False]]),
    )
    target, known = packed_targets(row, torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]]), 0.5)
    assert known.tolist() == [[True, True, True, False, False]]
    assert target[known].tolist() == [11.0, 2.0, 23.0]


def acted(learner: ValueRegularisedLearner) -> float:
    batch = bandit()
    with torch.no_grad():
        return learner.averaged_policy.head.act(learner.averaged_policy(batch)[0]).mean().item()


@pytest.mark.parametrize(("weight", "action"), [(0.0, 0.0), (20.0, 0.5)])
def test_the_value_pulls_towards_the_better_action(weight, action):
    learner = new_learner(value_weight=weight, value_discount=0.0)
    for _ in range(300):
        learner.update(bandit())
    assert acted(learner) == pytest.approx(action, abs=0.15)


def test_a_learner_goes_on_exactly_where_its_state_was_taken():
    through, resumed = (new_learner(value_weight=1.0) for _ in range(2))
    torch.manual_seed(1)
    batches = [bandit() for _ in range(4)]
    for batch in batches[:2]:
        through.update(batch)
    resumed.load_state_dict(copy.deepcopy(through.state_dict()))
    for learner in (through, resumed):
        for batch in batches[2:]:
            learner.update(batch)
    for ours, theirs in ((through.policy, resumed.policy), (through.critic, resumed.critic)):
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_discrete_actions_are_refused():
    with pytest.raises(UserError, match="--value-weight needs Box actions"):
        new_learner(Discrete(2))
