"""The linear recurrent unit against a loop over its complex equation, and its initial ring."""

import cmath
import math

import pytest
import torch

from decision_s4.agents.backbones.lru import LRU, LRUOptions
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, P, STEPS = 3, 4, 70


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def stirred() -> LRU:
    layer = LRU(D, LRUOptions(d_state=P))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def by_the_equation(layer: LRU, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One row u (T, D), x (P,) complex carried in, all in complex arithmetic."""
    b, c = torch.view_as_complex(layer.b), torch.view_as_complex(layer.c)
    poles = torch.exp(-layer.log_decay.exp() + 1j * layer.log_phase.exp())
    gamma = torch.sqrt(1 - poles.abs() ** 2)
    value, gate = layer.out.weight.split(D), layer.out.bias.split(D)
    outputs = []
    for u_t in u:
        x = poles * x + gamma * (b @ (u_t + 0j))
        y = torch.nn.functional.gelu((c @ x).real + layer.d * u_t)
        outputs.append((value[0] @ y + gate[0]) * torch.sigmoid(value[1] @ y + gate[1]))
    return torch.stack(outputs)


def test_outputs_and_gradients_equal_the_equation():
    layer = stirred()
    u = torch.randn(1, STEPS, D, requires_grad=True)
    state = torch.randn(1, P, 2, requires_grad=True)
    y, _ = layer(u, state, Packing.unbroken(1, STEPS))
    expected = by_the_equation(layer, u[0], torch.view_as_complex(state[0]))
    torch.testing.assert_close(y[0], expected, rtol=1e-10, atol=1e-10)

    weights, inputs = torch.randn_like(expected), [u, state, *layer.parameters()]
    found, wanted = (
        torch.autograd.grad((weights * each).sum(), inputs) for each in (y[0], expected)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_pole_a_hand_can_check():
    """|λ| = 0.6 gives γ = 0.8, phase π/2 turns: states after a 1 are 0.8, 0.48 i, −0.288."""
    layer = LRU(1, LRUOptions(d_state=1))
    with torch.no_grad():
        (
            layer.log_decay.fill_(math.log(-math.log(0.6))),
            layer.log_phase.fill_(math.log(math.pi / 2)),
        )
        layer.b.copy_(torch.tensor([[[1.0, 0.0]]]))
    state, found, constants = layer.initial_state(1), [], layer.constants()
    for u in (1.0, 0.0, 0.0):
        _, state = layer.step(torch.tensor([[u]]), state, constants)
        found.append(complex(*state.flatten().tolist()))
    assert all(map(cmath.isclose, found[:1], [0.8]))
    torch.testing.assert_close(torch.tensor(found), torch.tensor([0.8, 0.48j, -0.288]))


def test_initial_poles_lie_uniformly_on_the_ring():
    layer = LRU(2, LRUOptions(d_state=20_000, r_min=0.5, r_max=0.8, max_phase=1.0))
    poles, _ = layer.discretise()
    assert 0.5 <= poles.abs().min() < 0.501
    assert 0.799 < poles.abs().max() <= 0.8
    inner = (poles.abs() < 0.65).double().mean().item()  # by area, not by radius
    assert inner == pytest.approx((0.65**2 - 0.5**2) / (0.8**2 - 0.5**2), abs=0.02)
    assert poles.angle().min() > 0
    assert poles.angle().max() <= 1
    assert poles.angle().mean().item() == pytest.approx(0.5, abs=0.02)


def test_states_keep_the_scale_of_the_input():
    """White input of variance 1 gives E|x|² = 1 whatever the pole: that is what γ is for."""
    layer = LRU(64, LRUOptions(d_state=256, r_max=0.99))
    u = torch.randn(2, 3000, 64)
    _, state = layer(u, layer.initial_state(2), Packing.unbroken(2, 3000))
    assert torch.view_as_complex(state).abs().square().mean().item() == pytest.approx(1, abs=0.2)


def test_gamma_keeps_its_digits_where_memory_is_longest():
    """|λ| = 1 − 1e-12 is 1 in float32, and γ = √(2e-12) still."""
    layer = LRU(1, LRUOptions(d_state=1)).float()
    with torch.no_grad():
        layer.log_decay.fill_(math.log(1e-12)), layer.b.copy_(torch.tensor([[[1.0, 0.0]]]))
    _, b = layer.discretise()
    assert b.real.item() == pytest.approx(math.sqrt(2e-12), rel=1e-5)


def test_it_begins_without_memory():
    layer = LRU(D, LRUOptions())
    first, second = (layer.initial_state(1) + scale for scale in (0, 5))
    u, packing = torch.randn(1, STEPS, D), Packing.unbroken(1, STEPS)
    assert torch.equal(layer(u, first, packing)[0], layer(u, second, packing)[0])
    assert layer(u, first, packing)[1].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state 0"),
        ({"r_min": -0.1}, "r_min -0.1"),
        ({"r_min": 0.9995}, "r_max 0.999 need"),
        ({"r_max": 1.0}, "r_max 1.0 need"),
        ({"r_min": 0.0, "r_max": 0.0}, "0 < r_max"),
        ({"r_min": math.nan}, "r_min nan"),
        ({"max_phase": 0.0}, "max_phase 0.0"),
        ({"max_phase": 7.0}, "max_phase 7.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        LRU(D, LRUOptions(**options))
