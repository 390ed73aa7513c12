"""The recorded step equals the equation on CUDA, for any number of rows, and hands out no memory
that it writes later."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.lti_scan import System
from decision_s4.kernels.policy_step import (
    Affine,
    Head,
    Inputs,
    Layer,
    Mlp,
    Norm,
    Plan,
    make_policy_step,
)

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
SEEN, DONE, WIDTH, STATES = 5, 2, 16, 4


def affine(inputs, outputs):
    return Affine(0.3 * torch.randn(inputs, outputs), torch.randn(outputs))


def norm():
    return Norm(torch.randn(WIDTH), torch.randn(WIDTH), 1e-5)


def make_plan(low_rank, hidden):
    def layer():
        kind = torch.complex64
        system = System(
            *(0.2 * torch.randn(WIDTH, STATES, dtype=kind) for _ in range(5 if low_rank else 3))
        )
        mlp = Mlp(norm(), affine(WIDTH, 11), affine(11, WIDTH)) if hidden else None
        return Layer(norm(), system, torch.randn(WIDTH), affine(WIDTH, WIDTH), mlp)

    inputs = 1 + SEEN + DONE
    head = Head(affine(WIDTH, DONE), torch.zeros(DONE), torch.ones(DONE), True)
    parts = torch.randn(inputs), affine(inputs, WIDTH), affine(WIDTH, WIDTH), (layer(), layer())
    return tree_map(lambda x: x.cuda() if torch.is_tensor(x) else x, Plan(*parts, norm(), head))


def moment(rows, starts):
    start = torch.zeros(rows, dtype=torch.bool)
    start[list(starts)] = True
    parts = torch.randn(rows), torch.randn(rows, SEEN), torch.randn(rows, DONE), start
    return Inputs(*(x.cuda() for x in parts))


def play(step, moments):
    rows = len(moments[0].start)
    state = tuple(torch.full((rows, WIDTH, STATES, 2), torch.nan, device="cuda") for _ in range(2))
    outs = []
    for inputs in moments:
        out, state = step(inputs, state)
        outs.append(out)
    return torch.stack(outs), state


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
@pytest.mark.parametrize(("low_rank", "hidden"), [(True, False), (False, True)])
def test_it_equals_the_equation(rows, low_rank, hidden):
    torch.manual_seed(0)
    plan = make_plan(low_rank, hidden)
    moments = [moment(rows, {0: range(rows), 5: [rows - 1]}.get(t, ())) for t in range(8)]
    wanted = play(make_policy_step(plan, "naive"), moments)
    given = play(make_policy_step(plan, "graph"), moments)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_what_it_hands_out_and_what_it_is_given_stay():
    torch.manual_seed(1)
    plan = make_plan(True, False)
    step = make_policy_step(plan, "graph")
    first, second = moment(2, range(2)), moment(2, ())
    zeros = tuple(torch.zeros(2, WIDTH, STATES, 2, device="cuda") for _ in range(2))
    out, state = step(first, zeros)
    kept = out.clone(), tuple(x.clone() for x in state)
    step(second, state)
    torch.testing.assert_close((out, state), kept, rtol=0, atol=0)
    assert all(x.abs().max() == 0 for x in zeros)
    again, _ = step(first, zeros)
    assert torch.equal(again, out)


def test_a_policy_on_cuda_acts_as_on_the_cpu():
    torch.manual_seed(2)
    observation, action = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,))
    policy = SequencePolicy(observation, action, PolicyOptions(backbone="s4")).eval()
    here, there = Actor(policy), Actor(policy.cuda(), impl="graph")
    states = here.initial_state(3), there.initial_state(3)
    for t in range(5):
        start = torch.full((3,), t == 0)
        parts = torch.randn(3, 3), torch.rand(3, 2), torch.ones(3), torch.full((3,), 9.0)
        step = TimeStep(*parts, start, torch.zeros_like(start), torch.zeros_like(start))
        (a, mine), (b, theirs) = here.act(step, states[0]), there.act(step, states[1])
        states = mine, theirs
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-4)


def test_a_plan_on_the_cpu_is_refused():
    plan = tree_map(lambda x: x.cpu() if torch.is_tensor(x) else x, make_plan(True, False))
    with pytest.raises(ValueError, match="needs a policy on CUDA, not on cpu"):
        make_policy_step(plan, "graph")
