"""Mamba-2 against its equations, written out channel by channel in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from decision_s4.agents.backbones.mamba2 import Mamba2, Mamba2Options
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, N, HEADS, TAPS, STEPS = 4, 3, 2, 3, 12
INNER = 2 * D


@pytest.fixture
def layer() -> Mamba2:
    torch.manual_seed(0)
    layer = Mamba2(D, Mamba2Options(d_state=N, n_heads=HEADS, d_conv=TAPS)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def published(layer: Mamba2, u: torch.Tensor) -> torch.Tensor:
    """The layer's output (T, D) for one episode u (T, D), scalar by scalar where it recurs."""
    projected = u @ layer.in_proj.weight.T
    z, xBC, dt = projected.split([INNER, INNER + 2 * N, HEADS], dim=-1)
    padded = torch.cat([xBC.new_zeros(TAPS - 1, xBC.shape[1]), xBC]).T[None]
    xBC = F.conv1d(padded, layer.conv_weight[:, None], layer.conv_bias, groups=xBC.shape[1])
    xBC = xBC[0].T * torch.sigmoid(xBC[0].T)
    x, B, C = xBC[:, :INNER], xBC[:, INNER : INNER + N], xBC[:, INNER + N :]
    dt = torch.log(1 + torch.exp(dt + layer.dt_bias))
    channels = []
    for e in range(INNER):
        head = e // (INNER // HEADS)
        state, y = torch.zeros(N, dtype=u.dtype), []
        for t in range(len(u)):
            decay = torch.exp(-dt[t, head] * torch.exp(layer.A_log[head]))
            state = decay * state + dt[t, head] * x[t, e] * B[t]
            y.append(C[t] @ state + layer.D[head] * x[t, e])
        channels.append(torch.stack(y))
    y = torch.stack(channels, dim=1) * z * torch.sigmoid(z)
    y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return y @ layer.out_proj.weight.T


def test_outputs_and_gradients_equal_the_equations(layer):
    u = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(u, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, row) for row in u])
    inputs = [u, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_state_has_the_sizes_told():
    layer = Mamba2(64, Mamba2Options())
    conv, ssm = layer.initial_state(5)
    assert conv.shape == (5, 128 + 2 * 64, 3)
    assert ssm.shape == (5, 4, 32, 64)
    assert conv.dtype == ssm.dtype == torch.float32


def test_it_begins_as_published():
    torch.manual_seed(1)
    layer = Mamba2(64, Mamba2Options(n_heads=128))
    dt, decay_rate = F.softplus(layer.dt_bias), layer.A_log.exp()
    assert dt.min() >= 0.001 * 0.999 and dt.max() <= 0.1 * 1.001
    assert abs(dt.log().mean() - math.log(0.01)) < 0.3  # log-uniform: its middle is 0.01
    assert decay_rate.min() >= 1 * 0.999 and decay_rate.max() <= 16 * 1.001
    assert abs(decay_rate.mean() - 8.5) < 1
    assert layer.D.tolist() == [1] * 128
    assert layer.norm.weight.tolist() == [1] * 128


def test_no_drift_over_ten_thousand_steps(layer):
    """float32 stays by float64, at horizons of thousands of steps too."""
    with torch.no_grad():
        layer.A_log.fill_(-8.0)
    u, packing = torch.randn(1, 10_000, D), Packing.unbroken(1, 10_000)
    _, expected = layer(u.double(), layer.initial_state(1), packing)
    layer.float()
    _, found = layer(u, layer.initial_state(1), packing)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_poles_and_time_steps_are_named(layer):
    assert layer.recurrence_parameters == ("A_log", "dt_bias")
    assert all(getattr(layer, name).shape == (HEADS,) for name in layer.recurrence_parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state 0 must be at least 1"),
        ({"expand": 0}, "expand 0"),
        ({"d_conv": 0}, "d_conv 0"),
        ({"n_heads": 3}, "n_heads 3 must divide expand · d_model = 8"),
        ({"dt_min": 0.2}, "dt_min 0.2 and dt_max 0.1"),
        ({"a_min": 0.0}, "a_min 0.0"),
        ({"a_max": float("nan")}, "a_max nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Mamba2(D, Mamba2Options(**options))


def test_a_convolution_of_one_tap_keeps_no_inputs():
    layer = Mamba2(D, Mamba2Options(d_conv=1)).double()
    conv, _ = layer.initial_state(2)
    assert conv.shape[2] == 0
    u = torch.randn(2, 5, D, dtype=torch.float64)
    y, _ = layer(u, layer.initial_state(2), Packing.unbroken(2, 5))
    state, outputs = layer.initial_state(2), []
    for u_t in u.unbind(1):
        y_t, state = layer.step(u_t, state, layer.constants())
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), y)
