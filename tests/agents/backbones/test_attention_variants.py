"""Power softmax, local linear and local smooth attention: their equations, query by query."""

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.las import LocalSmoothAttention
from decision_s4.agents.backbones.lla import LocalLinearAttention
from decision_s4.agents.backbones.power_softmax import PowerSoftmax
from decision_s4.agents.backbones.transformer import Transformer
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, HEADS, STEPS, WINDOW = 8, 2, 9, 5
WIDTH = D // HEADS


def power(layer, h: int, q, k, v):
    """Of the last query of q (L, d)."""
    weights = (k @ q[-1] / WIDTH**0.5) ** 4
    return weights / weights.sum() @ v


def local_linear(layer, h: int, q, k, v):
    """Ridge regression on (1, k_s − q), solved as least squares; its constant."""
    weights = torch.softmax(k @ q[-1] / WIDTH**0.5, 0)
    design = torch.cat([torch.ones(len(k), 1, dtype=k.dtype), k - q[-1]], 1)
    penalty = layer.options.ridge * torch.eye(WIDTH + 1, dtype=k.dtype)
    penalty[0, 0] = 0
    left = design.T @ (weights[:, None] * design) + penalty
    return torch.linalg.solve(left, design.T @ (weights[:, None] * v))[0]


def local_smooth(layer, h: int, q, k, v):
    fade = torch.exp(-layer.log_slope[h].exp() * torch.arange(len(k) - 1, -1, -1))
    weights = torch.softmax(fade * (k @ q[-1]) / WIDTH**0.5, 0)
    return weights @ v


VARIANTS = {
    "power-softmax": (PowerSoftmax, power),
    "lla": (LocalLinearAttention, local_linear),
    "las": (LocalSmoothAttention, local_smooth),
}


def published(layer, attend, x: torch.Tensor) -> torch.Tensor:
    """Every head, every query, over its window."""
    q, k, v = layer._project(x)  # (T, H, d)
    if isinstance(layer, LocalSmoothAttention):
        padded = torch.cat([v.new_zeros(3, HEADS, WIDTH), v])
        v = sum(padded[i : i + len(v)] for i in range(4)) / 4
    rows = []
    for t in range(len(x)):
        window = slice(max(0, t - WINDOW + 1), t + 1)
        parts = ([part[window, h] for part in (q, k, v)] for h in range(HEADS))
        rows.append(torch.cat([attend(layer, h, *each) for h, each in enumerate(parts)]))
    return layer.out(torch.stack(rows))


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_equal_the_equations(name):
    torch.manual_seed(0)
    kind, attend = VARIANTS[name]
    layer = kind(D, kind.Options(n_heads=HEADS, window=WINDOW, positions="none")).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, attend, row) for row in x])
    inputs = [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_large_ridge_leaves_softmax_attention():
    layer = LocalLinearAttention(D, LocalLinearAttention.Options(ridge=1e9)).double()
    plain = Transformer(D, Transformer.Options()).double()
    plain.load_state_dict(layer.state_dict())
    x, packing = torch.randn(2, STEPS, D, dtype=torch.float64), Packing.unbroken(2, STEPS)
    found, expected = (each(x, each.initial_state(2), packing)[0] for each in (layer, plain))
    torch.testing.assert_close(found, expected)


def test_local_linear_attention_reads_off_a_line():
    """Values that are linear in keys are told exactly at any query; softmax only averages."""
    torch.manual_seed(1)
    layer = LocalLinearAttention(D, LocalLinearAttention.Options(ridge=1e-5)).double()
    q, k = torch.randn(2, 1, 1, 12, 2, dtype=torch.float64)
    line = torch.tensor([[2.0], [-3.0]], dtype=torch.float64)
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    found = layer.weigh(q, k, mask) @ (k @ line + 5)
    torch.testing.assert_close(found, q @ line + 5, rtol=1e-3, atol=1e-3)


def test_powers_ignore_scale_and_stand_scores_of_zero():
    layer = PowerSoftmax(D, PowerSoftmax.Options())
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    q, k = torch.tensor([[[[1.0], [0.0]]]]), torch.tensor([[[[1.0], [-2.0]]]])
    for scale in (1e-20, 1.0, 1e15):
        weights = layer.weigh(scale * q, k, mask)
        torch.testing.assert_close(weights, torch.tensor([[[[1 / 17, 16 / 17], [0, 0]]]]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("power-softmax", {"power": 3}, "power 3 must be even"),
        ("power-softmax", {"window": 0}, "window 0 must be at least 1"),
        ("lla", {"ridge": 1e-9}, "ridge 1e-09 must be at least 1e-05"),
        ("las", {"smoothing": 0}, "smoothing 0 must be at least 1"),
        ("las", {"n_heads": 3}, "n_heads 3 does not divide d_model 8"),
        ("las", {"positions": "rotery"}, "did you mean 'rotary'"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        make_backbone(name, D, **options)
