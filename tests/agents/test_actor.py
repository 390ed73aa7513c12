"""An Actor does what the policy's own step does, for any spaces, on the same state."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from decision_s4.agents.acting_plan import can_plan
from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import BACKBONES, ops
from decision_s4.agents.backbones.base import MEMORYLESS
from decision_s4.agents.flat_step import FlatAct
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.spaces import map_tree, space_tree
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels import recorded_rows
from decision_s4.kernels.policy_step import cpu

BOX = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
DICT = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3, start=-1)})
TWO = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64)
SPACES = {
    "box": (BOX, TWO),
    "scalar": (spaces.Box(-1, 1, ()), spaces.Box(-2, 2, ())),
    "unbounded": (BOX, spaces.Box(-np.inf, np.inf, (3,))),
    "dict": (DICT, spaces.Box(-1, 1, (2, 2))),
    "discrete": (spaces.Discrete(4), spaces.Discrete(3, start=2)),
    "multi": (spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])),
}


def make_policy(names="box", **options):
    torch.manual_seed(0)
    policy = SequencePolicy(*SPACES[names], PolicyOptions(d_model=16, d_embed=8, **options))
    with torch.no_grad():
        for parameter in policy.parameters():  # what begins at zero or one would hide mistakes
            parameter += 0.1 * torch.randn_like(parameter)
    return policy.eval()


def sample(space, rows):
    values = [space_tree(space, space.sample()) for _ in range(rows)]
    stacked = map_tree(lambda *leaves: np.stack(leaves), *values)
    return map_tree(_tensor, stacked)


def _tensor(array):
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)


def moments(policy, starts):
    """One TimeStep a row of starts (T, B)."""
    policy.observation_space.seed(0)
    policy.action_space.seed(0)
    steps = []
    for row in starts:
        start = torch.tensor(row)
        action = sample(policy.action_space, len(start))
        action = map_tree(
            lambda x, s=start: x.masked_fill(s.view(-1, *[1] * (x.ndim - 1)), 0), action
        )
        seen, ended = sample(policy.observation_space, len(start)), torch.zeros_like(start)
        wanted = 1000 * torch.rand(len(start))
        steps.append(TimeStep(seen, action, torch.zeros(len(start)), wanted, start, ended, ended))
    return steps


@torch.no_grad()
def own_steps(policy, steps):
    state, actions = policy.initial_state(len(steps[0].start)), []
    for step in steps:
        features, state = policy.step(step, state)
        actions.append(policy.head.act(features))
    return torch.stack(actions), state


def acted(actor, steps):
    state, actions = actor.initial_state(len(steps[0].start)), []
    for step in steps:
        action, state = actor.act(step, state)
        actions.append(action)
    return torch.stack(actions), state


def assert_same(given, wanted):
    (actions, state), (own_actions, own_state) = given, wanted
    assert actions.shape == own_actions.shape and actions.dtype == own_actions.dtype
    torch.testing.assert_close(actions, own_actions, rtol=1e-5, atol=1e-5)
    for ours, own in zip(tree_leaves(state), tree_leaves(own_state), strict=True):
        assert (ours - own).abs().max() <= 1e-5 * own.abs().max()


STARTS = [[True, True], [False, False], [False, True], [False, False]]


@pytest.mark.parametrize("names", SPACES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mlp_ratio", [0.0, 1.5])
def test_any_space_any_backbone(names, backbone, mlp_ratio):
    policy = make_policy(names, backbone=backbone, mlp_ratio=mlp_ratio)
    steps = moments(policy, STARTS)
    assert_same(acted(Actor(policy), steps), own_steps(policy, steps))


@pytest.mark.parametrize("names", SPACES)
@pytest.mark.parametrize("backbone", ["s4", "s4d"])
def test_cpp(names, backbone):
    if cpu.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")
    policy = make_policy(names, backbone=backbone)
    steps = moments(policy, STARTS)
    assert_same(acted(Actor(policy, impl="cpu"), steps), own_steps(policy, steps))


@pytest.mark.parametrize("names", ["box", "dict", "multi"])
@pytest.mark.parametrize("backbone", sorted(BACKBONES | MEMORYLESS))
def test_what_a_recording_copies_in_and_out(names, backbone, monkeypatch):
    """Here it runs anew where CUDA would replay it (see test_actor_cuda.py)."""
    monkeypatch.setattr(recorded_rows, "record", lambda run, device: (run, run()))
    policy = make_policy(names, backbone=backbone)
    actor = Actor(policy)
    with torch.inference_mode():
        actor._act = FlatAct(actor.policy, recorded_rows.RecordedRows, None)
    steps = moments(policy, [[True] * 3, [False] * 3, [False, True, False], [False] * 3])
    assert_same(acted(actor, steps), own_steps(policy, steps))
    first = acted(actor, [steps[0]])
    acted(actor, [steps[-1]])
    torch.testing.assert_close(acted(actor, [steps[0]]), first, rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda rows: st.lists(
            st.lists(st.booleans(), min_size=rows, max_size=rows), min_size=1, max_size=12
        )
    )
)
def test_starts_anywhere(starts):
    policy = make_policy()
    steps = moments(policy, starts)
    assert_same(acted(Actor(policy), steps), own_steps(policy, steps))


def test_a_dimension_that_hardly_varies_keeps_its_digits():
    policy = make_policy()
    policy.set_statistics(np.full((2, 3), 20.0), np.full((2, 3), 1e-5))
    steps = [
        step._replace(observation=20 + 1e-5 * step.observation) for step in moments(policy, STARTS)
    ]
    assert_same(acted(Actor(policy), steps), own_steps(policy, steps))


@pytest.mark.parametrize("names", ["box", "dict", "discrete"])
def test_a_later_change_of_the_policy_leaves_the_actor_as_it_was(names):
    policy = make_policy(names)
    steps, actor = moments(policy, STARTS), Actor(policy)
    before = acted(actor, steps)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2).sub_(0.5)
    torch.testing.assert_close(acted(actor, steps), before, rtol=0, atol=0)


def test_a_policy_in_training_mode_acts_by_its_own_step():
    policy = make_policy(dropout=0.5).train()
    steps = moments(policy, STARTS)
    torch.manual_seed(1)
    wanted = own_steps(policy, steps)
    torch.manual_seed(1)
    assert_same(acted(Actor(policy), steps), wanted)
    with pytest.raises(ValueError, match="impl 'cpu' acts for s4 and s4d policies"):
        Actor(policy, impl="cpu")
    with pytest.raises(ValueError, match="impl 'graph' acts for policies on CUDA in evaluation"):
        Actor(policy, impl="graph")
    with pytest.raises(ValueError, match="impl 'grahp' is unknown; use one of"):
        Actor(policy, impl="grahp")


def test_samples_of_a_discrete_policy_differ():
    policy = make_policy("discrete")
    step = moments(policy, [[True] * 200])[0]
    actor = Actor(policy)
    action, _ = actor.act(step, actor.initial_state(200), deterministic=False)
    assert set(action.tolist()) == {2, 3, 4}


def test_while_a_probe_reads_nothing_fused_acts():
    policy = make_policy()
    assert can_plan(policy)
    actor, seen = Actor(policy), []
    (step,), state = moments(policy, [[True]]), actor.initial_state(1)
    expected, _ = actor.act(step, state)
    with ops.taps({"blocks.0.input": seen.append}):
        found, _ = actor.act(step, state)
    assert len(seen) == 1
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(actor.act(step, state)[0], expected)
