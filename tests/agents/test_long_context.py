"""Chunks and decimation: bit for bit the plain policy while a context fits, then as by hand.

Shapes: B rows, T steps.
"""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents import backbones
from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.decimation import decimated_features, most_open
from decision_s4.agents.long_context import entropy, long_context_agent
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.envs.errors import UserError
from decision_s4.envs.rollout import rollout
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.selective_scan import selective_scan
from decision_s4.kernels.short_conv import short_conv

OBSERVATION, HAND, CHOICE = spaces.Box(-9, 9, (3,)), spaces.Box(-2, 1, (2,)), spaces.Discrete(4)
BACKBONES = ["s4", "mamba", "gru", "transformer"]
"""Of those that are checked closely."""
WAYS = {"chunk_steps": (8, 0), "keep_steps": (0, 8)}


def new_policy(backbone: str, action: spaces.Space = CHOICE, **options) -> Policy:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_layers": 2, "d_embed": 8} | options
    policy = make_policy(OBSERVATION, action, PolicyOptions(backbone, **sizes)).eval()
    policy.requires_grad_(True)  # as a checkpoint's are
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if action is CHOICE:
            policy.head.linear.weight.mul_(5)  # so that choices differ
    return policy


def steps_of(count: int, action: spaces.Space = CHOICE, rows: int = 2) -> list[TimeStep]:
    """The second row's second episode begins at step 5."""
    draw, found = torch.Generator().manual_seed(1), []
    for time in range(count):
        start = torch.tensor([time == 0, time in (0, 5)])[:rows]
        shape = (rows, 2) if isinstance(action, spaces.Box) else (rows,)
        done = torch.randint(2, shape, generator=draw)
        seen = torch.randn(rows, 3, generator=draw)
        to_go = 1000 * torch.rand(rows, generator=draw)
        no = torch.zeros(rows, dtype=torch.bool)
        done = done.float() if isinstance(action, spaces.Box) else done
        found.append(TimeStep(seen, done, torch.zeros(rows), to_go, start, no, no))
    return found


def actions(agent, steps) -> list[torch.Tensor]:
    state, found = agent.initial_state(len(steps[0].start)), []
    for step in steps:
        action, state = agent.act(step, state, True)
        found.append(action)
    return found


@pytest.mark.parametrize("action", [CHOICE, HAND], ids=["choice", "hand"])
@pytest.mark.parametrize("backbone", sorted(backbones.BACKBONES))
def test_one_chunk_is_the_plain_policy(backbone, action):
    policy, steps = new_policy(backbone, action), steps_of(12, action)
    chunked = actions(long_context_agent(policy, 12, 0), steps)
    assert all(map(torch.equal, chunked, actions(Actor(policy), steps)))


@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_all_steps_kept_are_the_plain_policy(backbone):
    policy, steps = new_policy(backbone, HAND), steps_of(12, HAND)
    kept = actions(long_context_agent(policy, 0, 12), steps)
    assert all(map(torch.equal, kept, actions(Actor(policy), steps)))


def readings(policy: Policy, steps: list[TimeStep], row: int, chunk: int) -> torch.Tensor:
    """(C, D) features of each earlier chunk with the running one, and of that alone, by hand."""
    last = (len(steps) - 1) // chunk * chunk
    befores = [steps[first : first + chunk] for first in range(0, last, chunk)]
    found = []
    for before in [*befores, []]:
        state = policy.initial_state(len(steps[0].start))
        for step in [*before, *steps[last:]]:
            y, state = policy.step(step, state)
        found.append(y[row])
    return torch.stack(found)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_surest_chunk_speaks(backbone):
    """Row 0 is one episode of ten steps; row 1 has one of five and begins anew."""
    policy, steps, chunk = new_policy(backbone), steps_of(10), 3
    found = actions(long_context_agent(policy, chunk, 0), steps)
    with torch.no_grad():
        for row, first in ((0, 0), (1, 5)):
            for time in range(first, 10):
                features = readings(policy, steps[first : time + 1], row, chunk)
                surest = features[entropy(policy.head, features).argmin()]
                assert found[time][row] == policy.head.act(surest[None])[0]


def test_chunks_of_a_hand_are_averaged():
    policy, steps = new_policy("s4", HAND), steps_of(10, HAND)
    found = actions(long_context_agent(policy, 4, 0), steps)[-1][0]
    with torch.no_grad():
        wanted = policy.head.act(readings(policy, steps, 0, 4)).mean(0)
    torch.testing.assert_close(found, wanted)


def test_decimation_is_a_scan_of_the_kept_tokens():
    """Against the layer's own equations on the tokens that are left."""
    policy = new_policy("mamba", n_layers=1)
    block = policy.backbone.blocks[0]
    mixer, x = block.mixer, torch.randn(2, 9, 8)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, :3] = False
    found = decimated_features(policy.backbone, x, valid, 4)
    with torch.no_grad():
        for row in range(2):
            own = x[row : row + 1, valid[row]]
            u, z = mixer._project(block.norm(own))
            packing = Packing(torch.zeros(own.shape[:2], dtype=torch.bool), None)
            state = mixer.initial_state(1)
            u, _ = short_conv(u, mixer.conv_weight, mixer.conv_bias, state[0], packing)
            u = torch.nn.functional.silu(u)
            delta, B, C = mixer._select(u)
            order = delta[0, :-1].mean(-1).argsort(descending=True)[:3].sort().values
            kept = [*order.tolist(), own.shape[1] - 1]
            inputs = [part[:, kept] for part in (u, delta, B, C, z)]
            y, _ = selective_scan(
                *inputs[:2], mixer.constants(), *inputs[2:4], mixer.D, inputs[4], impl="naive"
            )
            wanted = policy.backbone.norm(own[:, -1] + mixer.out_proj(y[:, -1]))
            torch.testing.assert_close(found[row : row + 1], wanted)


def test_the_tokens_kept_are_those_that_layers_open_for():
    delta = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.05]])[..., None]
    valid = torch.ones(1, 5, dtype=torch.bool)
    assert most_open(delta, valid, 3).tolist() == [[1, 3, 4]]
    valid[0, :2] = False
    assert most_open(delta, valid, 3).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("way", WAYS)
def test_each_row_is_alone(way):
    """An episode beside another one that begins later, or without it: the same actions."""
    policy, steps = new_policy("mamba", HAND), steps_of(14, HAND)
    found = torch.stack(actions(long_context_agent(policy, *WAYS[way]), steps))
    one = [TimeStep(*(leaf[:1] for leaf in step)) for step in steps]
    alone = torch.stack(actions(long_context_agent(policy, *WAYS[way]), one))
    plain = torch.stack(actions(Actor(policy), steps))
    torch.testing.assert_close(found[:, :1], alone)
    assert torch.equal(found[:8], plain[:8])
    assert (found[8:, 0] - plain[8:, 0]).abs().max() > 1e-4
    assert torch.equal(found[:13, 1], plain[:13, 1])  # its second episode has had eight steps
    assert (found[13, 1] - plain[13, 1]).abs().max() > 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_episodes_of_different_lengths_are_played(way):
    options = PolicyOptions("mamba", d_model=8, n_layers=1, d_embed=8)
    space = spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2)
    policy = make_policy(*space, options).eval()
    agent = long_context_agent(policy, *WAYS[way])
    played = rollout(agent, "CartPole-v1", [50.0] * 5, range(5), workers=1)
    again = rollout(agent, "CartPole-v1", [50.0], [3], workers=1)
    assert again.lengths[0] == played.lengths[3]


@pytest.mark.parametrize(
    ("policy", "sizes", "message"),
    [
        (("s4", {}), (0, 5), "backbone 's4' selects no time steps"),
        (("mamba", {"tokens": "three"}), (0, 5), "of one token each"),
        (("s4", {"tokens": "observation"}), (0, 5), "^--keep-steps: this policy keeps nothing of"),
        (("mamba", {"context_mode": "recompute"}), (5, 0), "--chunk-steps is for policies that"),
        (("mamba", {}), (5, 5), "--chunk-steps 5 and --keep-steps 5 exclude each other"),
    ],
)
def test_what_cannot_be_is_refused_by_name(policy, sizes, message):
    name, options = policy
    with pytest.raises(UserError, match=message):
        long_context_agent(new_policy(name, **options), *sizes)
