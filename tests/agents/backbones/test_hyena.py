"""Hyena against plain convolutions; its implicit filters, which the laws' defaults do not reach."""

import pytest
import torch
from torch.nn import functional as F

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.hyena import Hyena
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, STEPS, LENGTH = 4, 12, 5
kinds = pytest.mark.parametrize("filters", ["modal", "implicit"])


def make(filters: str) -> Hyena:
    torch.manual_seed(0)
    return Hyena(D, Hyena.Options(filters=filters, l_max=LENGTH, d_state=3)).double()


def convolve(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Σ_s kernel[s] x[t − s] of each channel, (T, D)."""
    return torch.stack([(kernel[: t + 1].flip(0) * x[: t + 1]).sum(0) for t in range(len(x))])


def kernel_of(part, filters: str) -> torch.Tensor:
    """(T, D) the filter, lag by lag."""
    if filters == "implicit":
        return F.pad(part.constants().flip(1), (0, STEPS - LENGTH)).T
    pole = torch.exp(torch.complex(-part.log_rate.exp(), part.frequency))
    weight = torch.view_as_complex(part.c) * (1 - pole.abs() ** 2).sqrt()
    return torch.stack([2 * (weight * pole**t).sum(1).real for t in range(STEPS)])


def published(layer: Hyena, filters: str, u: torch.Tensor) -> torch.Tensor:
    taps = F.pad(layer.conv_weight.flip(1), (0, STEPS - 3)).T
    v, *gates = convolve(layer.in_proj(u), taps).chunk(3, dim=1)
    for i, (part, gate) in enumerate(zip(layer.filters, gates, strict=True)):
        v = gate * (convolve(v, kernel_of(part, filters)) + layer.d[i] * v)
    return layer.out_proj(v)


@kinds
def test_outputs_and_gradients_equal_convolutions(filters):
    layer = make(filters)
    u = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(u, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, filters, row) for row in u])
    inputs = [u, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@kinds
def test_steps_and_pieces_equal_the_whole(filters):
    torch.manual_seed(1)
    options = {"filters": filters, "l_max": LENGTH}
    backbone = make_backbone("hyena", D, n_layers=2, **options).double()
    x, start = torch.randn(3, 40, D, dtype=torch.float64), torch.rand(3, 40) < 0.1
    x[:, :9], start[:, 9] = float("nan"), True  # and nothing leaks across a start
    y, _ = backbone(x, start=start)
    state, outputs = backbone.initial_state(3), []
    for x_t, start_t in zip(x.unbind(1), start.unbind(1), strict=True):
        y_t, state = backbone.step(x_t, state, start_t)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1)[:, 9:], y[:, 9:])
    first, state = backbone(x[:, :23], start=start[:, :23])
    second, _ = backbone(x[:, 23:], state, start[:, 23:])
    torch.testing.assert_close(torch.cat([first, second], 1)[:, 9:], y[:, 9:])


def test_an_implicit_filter_ends_where_it_says():
    layer, packing = make("implicit"), Packing.unbroken(1, STEPS)
    part = layer.filters[0]
    x = torch.zeros(1, STEPS, D, dtype=torch.float64)
    x[:, 0] = 1
    y, _ = part(x, part.initial_state(1), packing)
    assert y[:, :LENGTH].abs().min() > 0
    assert y[:, LENGTH:].abs().max() == 0


def test_poles_want_the_smaller_rate():
    backbone = make_backbone("hyena", D, n_layers=1)
    first = backbone.blocks[0].mixer.filters[0]
    found = backbone.recurrence_parameters()
    assert len(found) == 4
    assert found[0] is first.log_rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": "model"}, "filters 'model' is unknown; did you mean 'modal'"),
        ({"order": 0}, "order 0 must be at least 1"),
        ({"l_max": 0}, "l_max 0 must be at least 1"),
        ({"horizon_min": 0.0}, "horizon_min 0.0 and horizon_max 300.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("hyena", D, **options)
