"""Eyes: two-dimensional mixers by their equations, and a picture that each must learn to read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from decision_s4.agents.actor_critic import ActorCritic, ActorCriticOptions
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.vision import (
    KINDS,
    WIDTH,
    Hyena2d,
    Patches,
    StateSpace2d,
    convolve,
    make_eyes,
)
from decision_s4.envs.errors import UserError

GRID = (3, 4)


def from_a_corner(layer: StateSpace2d, corner: int, u: torch.Tensor) -> torch.Tensor:
    """The recurrence over u (I, J, D), cell by cell."""
    keep, share = torch.sigmoid(layer.keep[:, corner]), torch.sigmoid(layer.share[:, corner])
    b, c = layer.b[:, corner], layer.c[:, corner]
    h, v = torch.zeros(2, GRID[0] + 1, GRID[1] + 1, *b.shape[1:], dtype=u.dtype)
    y = torch.zeros_like(u)
    for i in range(GRID[0]):
        for j in range(GRID[1]):
            left, above, x = h[i, j], v[i, j], u[i, j][:, None]
            h[i, j + 1] = keep[0] * (share[0] * left + (1 - share[0]) * above) + b[0] * x
            v[i + 1, j] = keep[1] * ((1 - share[1]) * left + share[1] * above) + b[1] * x
            y[i, j] = (c[0] * h[i, j + 1] + c[1] * v[i + 1, j]).sum(-1)
    return y


@torch.no_grad()
def test_the_state_space_is_its_recurrence_from_four_corners():
    torch.manual_seed(0)
    layer = StateSpace2d(GRID).double()
    u, expected = torch.randn(*GRID, WIDTH, dtype=torch.float64), 0
    for corner, axes in enumerate([(), (1,), (0,), (0, 1)]):
        expected = expected + from_a_corner(layer, corner, u.flip(axes)).flip(axes)
    found = layer(u[None])[0]
    torch.testing.assert_close(found, nn.functional.silu(expected + layer.d * u))


@torch.no_grad()
def test_hyena_convolves_with_its_filter_at_each_offset():
    torch.manual_seed(0)
    layer = Hyena2d(GRID).double()
    v, kernel = torch.randn(WIDTH, *GRID, dtype=torch.float64), layer.kernels()[1]
    expected = torch.zeros_like(v)
    for i, j in np.ndindex(GRID):
        for k, m in np.ndindex(GRID):
            offset = kernel[:, k - i + GRID[0] - 1, m - j + GRID[1] - 1]
            expected[:, i, j] += offset * v[:, k, m]
    torch.testing.assert_close(convolve(v[None], kernel)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_where_a_dot_is(kind):
    torch.manual_seed(0)
    eyes = make_eyes(kind, (1, 6, 6), 2)
    place = torch.tensor(list(np.ndindex(6, 6)))
    images = torch.zeros(36, 1, 6, 6) - 0.5
    images[torch.arange(36), 0, place[:, 0], place[:, 1]] = 0.5
    optimiser, target = torch.optim.Adam(eyes.parameters(), 3e-3), place / 2.5 - 1
    for _ in range(100):
        loss = (eyes(images) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2  # the mean answer has 0.47


@pytest.mark.parametrize("eyes", KINDS)
def test_a_policy_over_images_steps_as_it_reads(eyes):
    torch.manual_seed(0)
    space = spaces.Dict({"frame": spaces.Box(0, 255, (9, 12, 3), np.uint8)})
    options = PolicyOptions("lru", d_model=16, n_layers=1, d_embed=8, eyes=eyes)
    policy = make_policy(space, spaces.Discrete(2), options).eval()
    frames = torch.randint(256, (1, 4, 9, 12, 3), dtype=torch.uint8)
    batch = {
        "return_to_go": torch.ones(1, 4),
        "observation": {"frame": frames},
        "previous_action": torch.zeros(1, 4, dtype=torch.long),
        "start": torch.tensor([[True, False, False, False]]),
    }
    y, _ = policy(SimpleNamespace(**batch, valid=None))
    state, steps = policy.initial_state(1), []
    for t in range(4):
        parts = {name: x[:, t] for name, x in batch.items() if name != "observation"}
        step = SimpleNamespace(observation={"frame": frames[:, t]}, **parts)
        y_t, state = policy.step(step, state)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps, 1), y, rtol=1e-4, atol=1e-5)


def test_unknown_eyes_are_named():
    with pytest.raises(UserError, match="eyes 'vit-sms' are unknown; did you mean 'vit-ssm'"):
        make_eyes("vit-sms", (1, 6, 6), 2)


def test_an_actor_critic_takes_them_too():
    space = spaces.Box(0, 255, (6, 6, 1), np.uint8)
    options = ActorCriticOptions("lru", eyes="vit-hyena")
    agent = ActorCritic(space, spaces.Discrete(2), options)
    assert isinstance(agent.observation_features.network, Patches)
