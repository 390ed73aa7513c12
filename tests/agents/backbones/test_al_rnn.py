"""The almost-linear network against its equation, a case by hand, and that it cannot explode."""

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.al_rnn import AlmostLinearRNN
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, SIZE = 4, 6


def test_outputs_and_gradients_equal_the_equation():
    torch.manual_seed(0)
    layer = AlmostLinearRNN(D, AlmostLinearRNN.Options(d_state=SIZE, n_relu=2)).double()
    with torch.no_grad():
        layer.weight[:3] *= 10  # some rows beyond the bound
    x = torch.randn(2, 9, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, 9))
    z, outputs = torch.zeros(2, SIZE, dtype=torch.float64), []
    rows = layer.weight.abs().sum(1)
    assert (rows > 1).any()
    assert (rows < 1).any()
    weight = torch.where(rows > 1, 1 / rows, 1)[:, None] * layer.weight
    decay = torch.exp(-torch.exp(layer.log_rate))
    for x_t in x.unbind(1):
        bent = torch.where((torch.arange(SIZE) < 4) | (z > 0), z, 0)
        z = decay * z + (1 - decay) * (bent @ weight.T) + layer.read_in(x_t)
        outputs.append(layer.read_out(z))
    expected, inputs = torch.stack(outputs, 1), [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_two_states_never_drift_apart_whatever_the_weights():
    torch.manual_seed(1)
    layer = AlmostLinearRNN(D, AlmostLinearRNN.Options(d_state=32, n_relu=16)).double()
    with torch.no_grad():
        layer.weight.copy_(5 * torch.randn(32, 32))
    x, packing = torch.randn(1, 200, D, dtype=torch.float64), Packing.unbroken(1, 200)
    a, b = torch.randn(2, 1, 32, dtype=torch.float64)
    ends = [layer(x, state, packing)[1] for state in (a, b)]
    assert (ends[0] - ends[1]).abs().max() <= (a - b).abs().max() + 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state 0 must be at least 1"),
        ({"n_relu": 65}, "n_relu 65 must be between 0 and d_state 64"),
        ({"decay_max": 1.0}, "decay_min 0.5 and decay_max 1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("al-rnn", D, **options)
