"""On CUDA the recorded step of any backbone acts as the policy's own step, for any rows."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.flat_step import FlatAct
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.timestep import TimeStep

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
STARTS = [[True] * 3, [False] * 3, [False, True, False], [False] * 3, [False] * 3]
SEEN = spaces.Dict({"b": spaces.Box(-np.inf, np.inf, (4,)), "a": spaces.Discrete(3)})


def make_policy(backbone, action, device="cuda"):
    torch.manual_seed(0)
    options = PolicyOptions(backbone=backbone, d_model=16, d_embed=8, n_layers=2, mlp_ratio=1.0)
    policy = SequencePolicy(SEEN, action, options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy.to(device).eval()


def moments(rows):
    steps = []
    for row in STARTS:
        start = torch.tensor(row[:rows])
        seen = {"b": torch.randn(rows, 4), "a": torch.randint(3, (rows,))}
        action = torch.rand(rows, 2) * (~start)[:, None]
        numbers = torch.zeros(rows), torch.full((rows,), 9.0)
        steps.append(TimeStep(seen, action, *numbers, start, ~start, ~start))
    return steps


@torch.no_grad()
def own_steps(policy, steps):
    state, actions = policy.initial_state(len(steps[0].start)), []
    for step in steps:
        step = tree_map(lambda leaf: leaf.cuda(), step)
        features, state = policy.step(step, state)
        actions.append(policy.head.act(features))
    return torch.stack(actions), state


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("backbone", sorted(BACKBONES | MEMORYLESS))
def test_every_backbone_is_recorded_and_equals_its_own_step(backbone, rows):
    policy, steps = make_policy(backbone, spaces.Box(-1, 1, (2,))), moments(rows)
    actor = Actor(policy)
    state, actions = actor.initial_state(rows), []
    for step in steps:
        action, state = actor.act(step, state)
        actions.append(action)
    wanted, after = own_steps(policy, steps)
    torch.testing.assert_close(torch.stack(actions), wanted, rtol=1e-4, atol=1e-4)
    for ours, own in zip(tree_leaves(state), tree_leaves(after), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-4)
    recorded = isinstance(actor._act, FlatAct)
    assert recorded == (backbone not in ("s4", "s4d"))  # these have a plan
    assert not recorded or actor._act.rows is not None


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backbone", ["s4", "s4d", "mamba", "gla", "deltanet", "gru"])
def test_it_acts_on_a_second_gpu(backbone):
    """One process may have policies on both."""
    actions = []
    for device in ("cuda:0", "cuda:1", "cpu"):
        actor = Actor(make_policy(backbone, spaces.Box(-1, 1, (2,)), device))
        state = actor.initial_state(2)
        torch.manual_seed(1)
        for step in moments(2):
            action, state = actor.act(step, state)
        actions.append(action.cpu())
    for found in actions[:2]:
        torch.testing.assert_close(found, actions[2], rtol=1e-4, atol=1e-4)


def test_what_it_hands_out_and_what_it_is_given_stay():
    policy, (first, second, *_) = make_policy("mamba", spaces.Box(-1, 1, (2,))), moments(2)
    actor = Actor(policy, "graph")
    zero = actor.initial_state(2)
    action, state = actor.act(first, zero)
    kept = tree_map(torch.clone, (action, state))
    actor.act(second, state)
    torch.testing.assert_close((action, state), kept, rtol=0, atol=0)
    assert all(leaf.abs().max() == 0 for leaf in tree_leaves(zero))
    assert torch.equal(actor.act(first, zero)[0], action)


def test_a_state_of_another_backbone_is_refused():
    policy = make_policy("gla", spaces.Box(-1, 1, (2,)))
    actor = Actor(policy)
    step = moments(2)[0]
    actor.act(step, actor.initial_state(2))
    with pytest.raises(ValueError, match="state"):
        actor.act(step, make_policy("mamba", spaces.Box(-1, 1, (2,))).initial_state(2))


def test_a_step_that_cannot_be_recorded_acts_by_itself(monkeypatch):
    policy = make_policy("gla", spaces.Box(-1, 1, (2,)))
    step = moments(2)[0]
    block, own = policy.backbone.blocks[0], type(policy.backbone.blocks[0]).step

    def asks(self, x, state, constants):
        assert not x.isnan().any().item()  # waits for the GPU: no graph can
        return own(self, x, state, constants)

    monkeypatch.setattr(type(block), "step", asks)
    actor = Actor(policy)
    action, _ = actor.act(step, actor.initial_state(2))
    wanted, _ = own_steps(policy, [step])
    torch.testing.assert_close(action, wanted[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError):
        Actor(policy, "graph").act(step, actor.initial_state(2))
