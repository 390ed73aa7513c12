"""One policy in two modes, for every space: packed episodes in parallel, and step by step."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._pytree import tree_leaves

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import BACKBONES
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions, parameter_count
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.datasets import load
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import map_tree, space_tree
from decision_s4.envs.timestep import TimeStep

OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (3,)),
    "scalar": spaces.Box(-1, 1, ()),
    "discrete": spaces.Discrete(4, start=2),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "image": spaces.Box(0, 255, (12, 12, 3), np.uint8),
    "dict": spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (12, 12, 3), np.uint8),
            "hand": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,)))),
        }
    ),
}
ACTIONS = {
    "box": spaces.Box(-2, 3, (2,)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 2)),
    "discrete": spaces.Discrete(3, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 3], start=[1, 0]),
}
PAIRS = [*((name, "box") for name in OBSERVATIONS), *(("box", name) for name in ACTIONS)][1:]
SMALL = PolicyOptions(d_model=16, n_layers=2, d_embed=8)
ROWS, STEPS = 3, 70


def make_policy(observation="box", action="box", backbone="s4") -> SequencePolicy:
    """Every parameter stirred: S4's read-out starts at zero, where it could not go wrong."""
    torch.manual_seed(0)
    options = replace(SMALL, backbone=backbone)
    policy = SequencePolicy(OBSERVATIONS[observation], ACTIONS[action], options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy.eval()


def sampled(space: spaces.Space):
    """A tree (B, T, …) of samples, in the types of a Batch."""
    space.seed(0)
    trees = [space_tree(space, space.sample()) for _ in range(ROWS * STEPS)]
    stacked = map_tree(lambda *leaves: torch.as_tensor(np.stack(leaves)), *trees)
    return map_tree(lambda leaf: leaf.view(ROWS, STEPS, *leaf.shape[1:]), stacked)


def random_batch(policy: SequencePolicy) -> SimpleNamespace:
    """Episodes of about ten steps packed in three rows; nothing said of the step before a start."""
    start = torch.rand(ROWS, STEPS) < 0.1
    start[:, 0] = True
    action = sampled(policy.action_space)
    return SimpleNamespace(
        observation=sampled(policy.observation_space),
        previous_action=map_tree(lambda leaf: _cleared(leaf, start), action),
        return_to_go=1000 * torch.randn(ROWS, STEPS),
        action=action,
        start=start,
        valid=torch.ones(ROWS, STEPS, dtype=torch.bool),
    )


def _cleared(leaf: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    before = leaf.roll(1, dims=1)
    before[start] = 0
    return before


def time_step(batch, t: int) -> TimeStep:
    """Column `t` of a batch as an agent sees it."""
    rows = len(batch.start)
    observation, action = (
        map_tree(lambda leaf: leaf[:, t], tree)
        for tree in (batch.observation, batch.previous_action)
    )
    ended = torch.zeros(rows, dtype=torch.bool)
    start, target = batch.start[:, t], batch.return_to_go[:, t]
    return TimeStep(observation, action, torch.zeros(rows), target, start, ended, ended)


def acted(policy: SequencePolicy, batch) -> torch.Tensor:
    """Actions (B, T, …) of an Actor that meets the rows step by step."""
    actor, actions = Actor(policy), []
    state = actor.initial_state(len(batch.start))
    for t in range(batch.start.shape[1]):
        action, state = actor.act(time_step(batch, t), state, deterministic=True)
        actions.append(action)
    return torch.stack(actions, 1)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert (found - expected).double().norm() <= 1e-5 * expected.double().norm()


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize(("observation", "action"), PAIRS)
@torch.no_grad()
def test_stepped_actions_equal_parallel_ones(backbone, observation, action):
    policy = make_policy(observation, action, backbone=backbone)
    batch = random_batch(policy)
    features, final = policy(batch)
    expected = policy.head.act(features)
    assert_near(acted(policy, batch), expected)
    for row in expected.flatten(0, 1)[:20]:
        assert policy.action_space.contains(row.numpy().astype(policy.action_space.dtype)[()])

    state, stepped = policy.initial_state(ROWS), []
    for t in range(STEPS):
        y, state = policy.step(time_step(batch, t), state)
        stepped.append(y)
    assert_near(torch.stack(stepped, 1), features)
    for found, wanted in zip(tree_leaves(state), tree_leaves(final), strict=True):
        assert_near(found, wanted)


@torch.no_grad()
def test_the_action_before_an_episode_means_nothing():
    policy = make_policy()
    batch = random_batch(policy)
    expected, _ = policy(batch)
    batch.previous_action[batch.start] = 1e6
    assert torch.equal(policy(batch)[0], expected)
    assert_near(acted(policy, batch), policy.head.act(expected))


@pytest.mark.parametrize("name", ["return_to_go", "observation", "previous_action"])
def test_every_input_is_heeded(name):
    policy = make_policy()
    batch = random_batch(policy)
    batch.start[:, 1:] = False
    getattr(batch, name).requires_grad_()
    (gradient,) = torch.autograd.grad(policy(batch)[0][:, -1].sin().sum(), getattr(batch, name))
    seen = gradient.abs().view(ROWS, STEPS, -1).amax(-1) > 0
    assert seen[:, 1:].all()


@torch.no_grad()
def test_a_previous_action_that_is_switched_off_is_not_seen():
    torch.manual_seed(0)
    options = replace(SMALL, previous_action=False)
    policy = SequencePolicy(OBSERVATIONS["box"], ACTIONS["box"], options)
    batch = random_batch(policy)
    expected, _ = policy(batch)
    batch.previous_action += 1
    assert torch.equal(policy(batch)[0], expected)


@torch.no_grad()
def test_observation_noise_is_for_training_alone():
    torch.manual_seed(0)
    options = replace(SMALL, observation_noise=0.1)
    policy = SequencePolicy(OBSERVATIONS["box"], ACTIONS["box"], options)
    batch = random_batch(policy)
    policy.train()
    assert not torch.equal(policy(batch)[0], policy(batch)[0])
    policy.eval()
    assert torch.equal(policy(batch)[0], policy(batch)[0])
    assert_near(acted(policy, batch), policy.head.act(policy(batch)[0]))


@torch.no_grad()
def test_rows_of_one_batch_do_not_meet():
    policy = make_policy("dict")
    batch = random_batch(policy)
    alone = SimpleNamespace(**map_tree(lambda leaf: leaf[1:2], vars(batch)))
    assert_near(policy(alone)[0], policy(batch)[0][1:2])


def test_acting_leaves_policy_and_state_as_they_are():
    policy = make_policy()
    actor, step = Actor(policy), time_step(random_batch(policy), 0)
    before = map_tree(torch.clone, dict(policy.state_dict()))
    state = actor.act(step, actor.initial_state(ROWS))[1]
    first, second = actor.act(step, state), actor.act(step, state)
    assert all(map(torch.equal, tree_leaves(first), tree_leaves(second)))
    assert all(map(torch.equal, before.values(), policy.state_dict().values()))
    assert not any(leaf.requires_grad for leaf in tree_leaves(first))


def test_it_is_small_on_hopper():
    observation, action = spaces.Box(-np.inf, np.inf, (11,)), spaces.Box(-1, 1, (3,))
    assert parameter_count(SequencePolicy(observation, action, PolicyOptions())) < 100_000


def test_statistics_are_among_the_weights():
    policy = make_policy()
    policy.set_statistics(np.full(3, 2.0), np.full(3, 4.0))
    weights = policy.state_dict()
    assert weights["observation_features.mean"].tolist() == [2, 2, 2]
    assert weights["observation_features.std"].tolist() == [4, 4, 4]


@pytest.mark.parametrize("action", [spaces.MultiBinary(2), spaces.Text(3)])
def test_an_action_space_that_it_cannot_act_in_is_named(action):
    with pytest.raises(UserError, match=f"space {type(action).__name__}"):
        SequencePolicy(OBSERVATIONS["box"], action, SMALL)


def test_a_trained_policy_steps_through_real_episodes_as_it_was_trained(tmp_path):
    """Both ways of acting, over every step of a sixth of the embedded set."""
    data = load("hopper-mixed", cache_dir=tmp_path)
    torch.manual_seed(0)
    policy = SequencePolicy(data.observation_space, data.action_space, PolicyOptions())
    policy.set_statistics(*data.observation_statistics())
    learner = DecisionLearner(policy, OptimiserOptions(warmup_steps=5), total_steps=25)
    batches = PackedBatches(data, 1000, seed=0)
    losses = [learner.update(next(batches))["loss"].item() for _ in range(25)]
    assert losses[-1] < losses[0]
    batch = next(PackedBatches(data, 12_000, seed=0, rows=12))
    with torch.no_grad():
        features, _ = policy.eval()(batch)
        expected = policy.head.act(features)[batch.valid]
        assert_near(acted(policy, batch)[batch.valid], expected)
        assert_near(own_steps(policy, batch)[batch.valid], expected)
    assert batch.start.sum() > 20
    assert (batch.action[batch.valid] - expected).square().mean() < batch.action.var()


def own_steps(policy: SequencePolicy, batch) -> torch.Tensor:
    """Actions (B, T, …) by the policy's own step."""
    state, actions = policy.initial_state(len(batch.start)), []
    for t in range(batch.start.shape[1]):
        features, state = policy.step(time_step(batch, t), state)
        actions.append(policy.head.act(features))
    return torch.stack(actions, 1)


def test_the_token_map_places_every_input():
    parts = make_policy().token_map(2)
    assert [(part.step, part.modality, part.token) for part in parts] == [
        (step, modality, step)
        for step in (0, 1)
        for modality in ("return_to_go", "observation", "previous_action")
    ]
    assert [part.features for part in parts[:3]] == [slice(0, 1), slice(1, 4), slice(4, 6)]
