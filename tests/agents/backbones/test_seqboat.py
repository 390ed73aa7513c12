"""Sparse modular activation: the equations step by step, and which steps are active."""

import pytest
import torch
from torch.nn import functional as F

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.seqboat import SeqBoat, among_active
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, STEPS, WINDOW = 4, 14, 3


def make(**options) -> SeqBoat:
    torch.manual_seed(0)
    options = {"n_heads": 1, "window": WINDOW, "positions": "none", "d_state": 2} | options
    layer = SeqBoat(D, SeqBoat.Options(**options)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def filtered(layer: SeqBoat, x: torch.Tensor) -> torch.Tensor:
    part = layer.filter
    pole = torch.exp(torch.complex(-part.log_rate.exp(), part.frequency))
    weight = torch.view_as_complex(part.c) * (1 - pole.abs() ** 2).sqrt()
    kernel = torch.stack([2 * (weight * pole**t).sum(1).real for t in range(len(x))])
    return torch.stack([(kernel[: t + 1].flip(0) * x[: t + 1]).sum(0) for t in range(len(x))])


def published(layer: SeqBoat, x: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """One row (T, D), a loop over its steps."""
    h = F.silu(filtered(layer, x) + layer.d * x)
    outputs, taken, active = [], [], []
    for h_t in h:
        p, added = torch.sigmoid(layer.decide(h_t)), 0
        active.append(bool(p > 0.5))
        if active[-1]:
            taken = [*taken, h_t][-WINDOW:]
            qkv = layer.unit.queries_keys_values(torch.stack(taken))
            q, k, v = qkv.split(D, 1)
            read = layer.unit.out(torch.softmax(k @ q[-1] / D**0.5, 0) @ v)
            added = p * F.silu(layer.unit_gate(h_t)) * read
        outputs.append(layer.out(h_t + added))
    return torch.stack(outputs), active


def test_outputs_and_gradients_equal_the_equations():
    layer = make()
    torch.nn.init.constant_(layer.decide.bias, 0.5)
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected, active = zip(*(published(layer, row) for row in x), strict=True)
    assert 3 < sum(map(sum, active)) < 25  # some are, some are not
    expected, inputs = torch.stack(expected), [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_active_steps_are_packed_into_their_episodes():
    start = torch.tensor([[0, 0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 1, 0]], dtype=torch.bool)
    active = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    among, forgets = among_active(active, Packing(start))
    first = [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    assert among.start.int().tolist() == first
    assert torch.equal(among.valid, active)
    assert forgets.tolist() == [False, True]


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_none_or_all_may_be_active(bias):
    layer, packing = make(), Packing.unbroken(2, STEPS)
    torch.nn.init.constant_(layer.decide.bias, bias)
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, (_, ring) = layer(x, layer.initial_state(2), packing)
    torch.testing.assert_close(y[0], published(layer, x[0])[0])
    torch.autograd.grad(y.sum(), x)
    assert ring.present.sum() == (0 if bias < 0 else 2 * (WINDOW - 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state 0 must be at least 1"),
        ({"horizon_max": 0.5}, "horizon_min 1.0 and horizon_max 0.5"),
        ({"n_heads": 3}, "n_heads 3 does not divide d_model 4"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("seqboat", D, **options)
