"""Mamba against its equations, written out step by step in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.mamba import Mamba, MambaOptions
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, N, TAPS, RANK, STEPS = 4, 3, 3, 2, 12
INNER = 2 * D


@pytest.fixture
def layer() -> Mamba:
    torch.manual_seed(0)
    layer = Mamba(D, MambaOptions(d_state=N, d_conv=TAPS, dt_rank=RANK)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def published(layer: Mamba, u: torch.Tensor) -> torch.Tensor:
    """The layer's output (T, D) for one episode u (T, D), scalar by scalar where it recurs."""
    x, z = (u @ layer.in_proj.weight.T).split(INNER, dim=-1)
    padded = torch.cat([x.new_zeros(TAPS - 1, INNER), x]).T[None]
    x = F.conv1d(padded, layer.conv_weight[:, None], layer.conv_bias, groups=INNER)[0].T
    x = x * torch.sigmoid(x)
    selected = x @ layer.x_proj.weight.T
    rank, B, C = selected[:, :RANK], selected[:, RANK : RANK + N], selected[:, RANK + N :]
    dt = torch.log(1 + torch.exp(rank @ layer.dt_proj.weight.T + layer.dt_bias))
    channels = []
    for e in range(INNER):
        h, y = torch.zeros(N, dtype=u.dtype), []
        for t in range(len(u)):
            h = torch.exp(-dt[t, e] * torch.exp(layer.A_log[e])) * h + dt[t, e] * x[t, e] * B[t]
            y.append(C[t] @ h + layer.D[e] * x[t, e])
        channels.append(torch.stack(y))
    return (torch.stack(channels, dim=1) * z * torch.sigmoid(z)) @ layer.out_proj.weight.T


def test_outputs_and_gradients_equal_the_equations(layer):
    u = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(u, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, row) for row in u])
    inputs = [u, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_steps_that_are_not_valid_leave_finite_outputs_and_no_gradient(layer):
    x = torch.randn(1, 9, D, dtype=torch.float64)
    valid = torch.tensor([[True, True, False, False, True, True, False, True, True]])
    x[~valid] = torch.nan
    start = torch.zeros(1, 9, dtype=torch.bool)
    start[0, [3, 5]] = True  # the first lies on a step that is not valid: it means nothing
    x.requires_grad_()
    y, final = layer(x, layer.initial_state(1), Packing(start, valid))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert (gradient[~valid] == 0).all() and gradient.isfinite().all()
    cut = torch.zeros(1, 6, dtype=torch.bool)
    cut[0, 3] = True
    expected = layer(x.detach()[valid][None], layer.initial_state(1), Packing(cut))
    torch.testing.assert_close((y[valid][None], final), expected, rtol=1e-12, atol=1e-12)


def test_state_has_the_sizes_told():
    conv, ssm = Mamba(48, MambaOptions()).initial_state(5)
    assert conv.shape == (5, 96, 3) and ssm.shape == (5, 96, 16)
    assert conv.dtype == ssm.dtype == torch.float32


def test_it_starts_as_published():
    """A = −1 … −N in each channel, D = 1, time steps in [dt_min, dt_max], Δ's rank d_model / 16."""
    torch.manual_seed(1)
    layer = Mamba(40, MambaOptions(dt_min=0.01, dt_max=0.05))
    torch.testing.assert_close(-layer.constants(), torch.arange(1.0, 17).expand(80, 16))
    dt = F.softplus(layer.dt_bias.detach())
    assert 0.0099 < dt.min() < 0.015 and 0.04 < dt.max() < 0.0501
    assert (layer.D == 1).all()
    assert layer.dt_proj.weight.shape == (80, math.ceil(40 / 16))
    assert layer.dt_proj.weight.abs().max() <= 3**-0.5
    assert layer.conv_weight.abs().max() <= 0.5


def test_decays_and_time_steps_are_trained_gently():
    backbone = make_backbone("mamba", 8, n_layers=2)
    mixers = [block.mixer for block in backbone.blocks]
    wanted = {id(p) for mixer in mixers for p in (mixer.A_log, mixer.dt_bias)}
    assert {id(parameter) for parameter in backbone.recurrence_parameters()} == wanted


def test_mambapys_block_is_the_same_layer():
    """A whole layer by others with the same weights: outputs and every gradient, in float32."""
    theirs = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(3)
    layer = Mamba(16, MambaOptions(d_state=4))
    block = theirs.MambaBlock(theirs.MambaConfig(d_model=16, n_layers=1, d_state=4))
    pairs = {
        "in_proj.weight": layer.in_proj.weight,
        "conv1d.weight": layer.conv_weight,
        "conv1d.bias": layer.conv_bias,
        "x_proj.weight": layer.x_proj.weight,
        "dt_proj.weight": layer.dt_proj.weight,
        "dt_proj.bias": layer.dt_bias,
        "A_log": layer.A_log,
        "D": layer.D,
        "out_proj.weight": layer.out_proj.weight,
    }
    weights = dict(block.named_parameters())
    assert set(weights) == set(pairs)
    with torch.no_grad():
        for name, ours in pairs.items():
            weights[name].copy_(ours.view_as(weights[name]))
    x = torch.randn(2, 32, 16, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, 32))
    expected = block(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    by = torch.randn_like(y)
    found = torch.autograd.grad((y * by).sum(), [x, *pairs.values()])
    wanted = torch.autograd.grad((expected * by).sum(), [x, *(weights[name] for name in pairs)])
    for a, b in zip(found, wanted, strict=True):
        assert (a.view_as(b) - b).norm() <= 1e-5 * b.norm()


def test_ten_thousand_steps_do_not_drift():
    """float32 stepping against one float64 scan."""
    torch.manual_seed(2)
    layer = Mamba(4, MambaOptions(dt_min=1e-3, dt_max=1e-3))
    x = torch.randn(1, 10_000, 4)
    with torch.no_grad():
        state, constants = layer.initial_state(1), layer.constants()
        for x_t in x.unbind(1):
            _, state = layer.step(x_t, state, constants)
        double = layer.double()
        packing = Packing.unbroken(1, 10_000)
        _, expected = double(x.double(), double.initial_state(1), packing)
    for a, b in zip(state, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state 0 must be at least 1"),
        ({"expand": 0}, "expand 0 must be at least 1"),
        ({"d_conv": 0}, "d_conv 0 must be at least 1"),
        ({"dt_rank": -1}, "dt_rank -1 must be at least 1, or 0"),
        ({"dt_min": 0.2}, "dt_min 0.2 and dt_max 0.1 need"),
        ({"dt_max": float("inf")}, "dt_max inf need"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("mamba", 8, **options)
