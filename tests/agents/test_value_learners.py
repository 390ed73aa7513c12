"""TD3+BC and IQL: their losses by hand, and what only a learned value can tell."""

import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch.utils._pytree import tree_leaves

from decision_s4.agents.bootstrapping import follow, one_step_target
from decision_s4.agents.critics import TwinCritic, share_statistics
from decision_s4.agents.heads import make_head
from decision_s4.agents.iql import IQLLearner, IQLOptions, advantage_weight, expectile_loss
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.td3_bc import TD3BCLearner, TD3BCOptions, smoothed, value_term
from decision_s4.envs.errors import UserError
from decision_s4.envs.transitions import Transitions

ACTIONS = Box(-1, 1, (1,))
tensor = torch.tensor


def new_policy(action_space=ACTIONS, observation_space=None) -> Policy:
    torch.manual_seed(0)
    sizes = PolicyOptions(tokens="observation", d_model=32, n_layers=2)
    return make_policy(observation_space or Box(-1, 1, (1,)), action_space, sizes)


def test_the_target_stops_at_termination_only():
    target = one_step_target(
        tensor([1.0, 1.0]), tensor([False, True]), tensor([10.0, 10.0]), discount=0.9
    )
    assert target.tolist() == [10.0, 1.0]


def test_the_expectile_by_hand():
    difference = tensor([2.0, -1.0])
    assert expectile_loss(difference, 0.5).item() == pytest.approx((0.5 * 4 + 0.5 * 1) / 2)
    assert expectile_loss(difference, 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 1) / 2)


def test_weights_of_advantages_by_hand():
    weights = advantage_weight(tensor([0.0, np.log(2) / 3, 9.0]), temperature=3.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 100.0])


def test_the_pull_of_the_value_does_not_depend_on_its_scale():
    value = tensor([1.0, -3.0], requires_grad=True)
    assert value_term(value, 2.5).item() == pytest.approx(2.5 * 0.5)
    (slope,) = torch.autograd.grad(value_term(value, 2.5), value)
    (same,) = torch.autograd.grad(value_term(100 * value, 2.5), value)
    assert slope.tolist() == pytest.approx([-0.625, -0.625])
    assert same.tolist() == pytest.approx([-0.625, -0.625])


def test_the_targets_action_stays_in_the_space_and_its_noise_in_its_limit():
    head = make_head(4, Box(np.array([0.0]), np.array([4.0]), dtype=np.float64))
    torch.manual_seed(0)
    action = smoothed(torch.full((1000, 1), 2.0), head, noise=10.0, limit=0.5)
    assert (action.min().item(), action.max().item()) == (1.0, 3.0)
    assert smoothed(torch.full((1000, 1), 4.0), head, 10.0, 0.5).max().item() == 4.0


def test_a_target_network_follows_by_its_share():
    source, target = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for layer, value in ((source, 1.0), (target, 0.0)):
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, value)
    follow(target, source, 0.25)
    assert target.weight.item() == target.bias.item() == 0.25


def test_critics_see_observations_as_the_policy_does():
    space = Dict({"a": Box(-9, 9, (2,)), "b": Discrete(3)})
    policy = new_policy(observation_space=space)
    policy.set_statistics({"a": [1.0, 2.0], "b": 0}, {"a": [3.0, 4.0], "b": 1})
    critic = TwinCritic(space, ACTIONS, 8, 1)
    share_statistics(policy, critic)
    seen = {"a": torch.randn(5, 2), "b": tensor([0, 1, 2, 0, 1])}
    assert torch.equal(policy.features_of(seen), critic.observation_features(seen))
    assert critic(seen, torch.zeros(5, 1)).shape == (2, 5)


def one_step(observation: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> Transitions:
    ends = torch.ones(len(reward), dtype=torch.bool)
    return Transitions(observation, action, reward, torch.zeros_like(observation), ends)


def test_td3_bc_finds_an_action_better_than_any_average_of_the_data():
    """Logged actions are uniform; the best one follows the observation, their mean does not."""
    policy = new_policy()
    learner = TD3BCLearner(policy, TD3BCOptions(learning_rate=3e-3, value_weight=50.0))
    for _ in range(600):
        seen, action = torch.rand(64, 1) - 0.5, 2 * torch.rand(64, 1) - 1
        learner.update(one_step(seen, action, 1 - (action - seen).square().squeeze(1)))
    seen = tensor([[-0.4], [0.0], [0.4]])
    assert policy.act(seen).squeeze(1).tolist() == pytest.approx([-0.4, 0.0, 0.4], abs=0.12)


def test_without_value_td3_bc_clones():
    policy = new_policy()
    learner = TD3BCLearner(policy, TD3BCOptions(learning_rate=3e-3, value_weight=0.0))
    for _ in range(200):
        seen = torch.rand(64, 1) - 0.5
        learner.update(one_step(seen, -seen, seen.squeeze(1)))
    seen = tensor([[-0.4], [0.4]])
    assert policy.act(seen).squeeze(1).tolist() == pytest.approx([0.4, -0.4], abs=0.05)


def test_td3_bc_refuses_discrete_actions():
    with pytest.raises(UserError, match="Box actions"):
        TD3BCLearner(new_policy(Discrete(2)), TD3BCOptions())


def chain_batch() -> Transitions:
    """From state 0 action 1 leads to state 1, which pays 1 whatever is done; action 0 ends.

    So nothing but the value of state 1 tells that action 1 is the better one in state 0. Action 0
    is logged nine times in ten.
    """
    state = torch.randint(0, 2, (256,))
    action = (torch.rand(256) < 0.1).long()
    goes_on = (state == 0) & (action == 1)
    reward = (state == 1).float()
    return Transitions(state, action, reward, torch.ones_like(state), ~goes_on)


def test_iql_carries_a_value_back_to_the_action_that_led_to_it():
    policy = new_policy(Discrete(2), Discrete(2))
    options = IQLOptions(learning_rate=3e-3, temperature=10.0, target_rate=0.05)
    learner = IQLLearner(policy, options, total_steps=400)
    torch.manual_seed(0)
    for _ in range(400):
        learner.update(chain_batch())
    assert policy.act(tensor([0])).item() == 1
    values = learner.critic(tensor([0, 0]), tensor([0, 1])).mean(0)
    assert values.tolist() == pytest.approx([0.0, 0.99], abs=0.05)


def test_iql_without_temperature_clones():
    policy = new_policy(Discrete(2), Discrete(2))
    learner = IQLLearner(policy, IQLOptions(learning_rate=3e-3, temperature=0.0), 200)
    torch.manual_seed(0)
    for _ in range(200):
        learner.update(chain_batch())
    assert policy.act(tensor([0])).item() == 0


@pytest.mark.parametrize("kind", ["td3-bc", "iql"])
def test_a_learner_goes_on_exactly_where_its_state_was_taken(kind):
    def new() -> TD3BCLearner | IQLLearner:
        policy = new_policy()
        return (
            TD3BCLearner(policy, TD3BCOptions())
            if kind == "td3-bc"
            else IQLLearner(policy, IQLOptions(), 10)
        )

    torch.manual_seed(1)
    batches = [one_step(torch.randn(8, 1), torch.rand(8, 1), torch.randn(8)) for _ in range(6)]
    through, resumed = new(), new()
    for batch in batches[:3]:
        through.update(batch)
    resumed.load_state_dict(copy.deepcopy(through.state_dict()))
    for learner in (through, resumed):
        torch.manual_seed(2)
        for batch in batches[3:]:
            learner.update(batch)
    pairs = zip(through.policy.parameters(), resumed.policy.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_resumed_learner_keeps_the_moments_and_takes_the_rate_asked_for():
    before, resumed = (
        TD3BCLearner(new_policy(), TD3BCOptions(learning_rate=rate)) for rate in (1e-3, 1e-5)
    )
    for _ in range(2):
        before.update(one_step(torch.randn(8, 1), torch.rand(8, 1), torch.randn(8)))
    resumed.load_state_dict(copy.deepcopy(before.state_dict()))
    for name in ("policy_optimiser", "critic_optimiser"):
        ours, theirs = resumed.parts[name].state_dict(), before.parts[name].state_dict()
        assert ours["param_groups"][0]["lr"] == 1e-5
        kept = zip(tree_leaves(ours["state"]), tree_leaves(theirs["state"]), strict=True)
        assert all(torch.equal(a, b) for a, b in kept)
