"""GRU and LSTM against torch's own networks, run on each episode separately."""

import copy

import pytest
import torch
from torch import nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.gated import GRU, LSTM, GatedOptions
from decision_s4.agents.backbones.gated_marks import marked_scan, marked_step
from decision_s4.envs.errors import UserError
from decision_s4.kernels.gated_scan import naive
from decision_s4.kernels.packing import Packing

D, H = 3, 5
kinds = pytest.mark.parametrize("kind", [GRU, LSTM])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def torch_network(layer: GRU | LSTM) -> nn.RNNBase:
    network = (nn.GRU if isinstance(layer, GRU) else nn.LSTM)(D, H, batch_first=True)
    network.load_state_dict(layer.rnn.state_dict())
    return network


def torch_state(layer: GRU | LSTM, state: torch.Tensor):
    """One row's state (parts, H) as torch's networks take it."""
    parts = [part.view(1, 1, H) for part in state]
    return parts[0] if isinstance(layer, GRU) else tuple(parts)


@kinds
def test_packed_episodes_equal_torch_on_each(kind):
    """Row 0: 3 steps carried in, 4, 1; row 1: 8 carried in; row 2: nothing carried in, 2, 6."""
    layer, x = kind(D, GatedOptions(d_state=H)), torch.randn(3, 8, D)
    for bias in (layer.rnn.bias_ih_l0, layer.rnn.bias_hh_l0):
        nn.init.normal_(bias)
    state, start = torch.randn(3, layer.parts, H), torch.zeros(3, 8, dtype=torch.bool)
    start[0, 3], start[0, 7], start[2, 0], start[2, 2] = True, True, True, True
    y, final = layer(x, state, Packing(start))

    network, zero = torch_network(layer), torch.zeros(layer.parts, H)
    episodes = {(0, 0, 3): 1, (0, 3, 7): 0, (0, 7, 8): 0, (1, 0, 8): 1, (2, 0, 2): 0, (2, 2, 8): 0}
    for (row, begin, end), carried in episodes.items():
        before = torch_state(layer, state[row] if carried else zero)
        hidden, after = network(x[row : row + 1, begin:end], before)
        torch.testing.assert_close(y[row, begin:end], layer.out(hidden[0]), rtol=1e-12, atol=1e-12)
        if end == 8:
            after = torch.cat(after if isinstance(after, tuple) else (after,)).squeeze(1)
            torch.testing.assert_close(final[row], after, rtol=1e-12, atol=1e-12)


def scalar(kind: type) -> GRU | LSTM:
    """D = H = 1, all weights and biases zero, the output the hidden state itself."""
    layer = kind(1, GatedOptions(d_state=1))
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(layer.out.weight)
    return layer


def test_a_gru_a_hand_can_check():
    """With every weight zero, z = 1/2 and n = 0: the state halves."""
    layer = scalar(GRU)
    y, final = layer(torch.zeros(1, 3, 1), torch.full((1, 1, 1), 8.0), Packing.unbroken(1, 3))
    assert y.flatten().tolist() == [4, 2, 1]
    assert final.flatten().tolist() == [1]


def test_an_lstm_a_hand_can_check():
    """With every weight zero, f = o = 1/2 and g = 0: the cell halves, h = tanh(c) / 2."""
    layer = scalar(LSTM)
    state = torch.tensor([[[5.0], [8.0]]])  # h, c
    y, final = layer(torch.zeros(1, 3, 1), state, Packing.unbroken(1, 3))
    torch.testing.assert_close(y.flatten(), torch.tensor([4.0, 2.0, 1.0]).tanh() / 2)
    torch.testing.assert_close(final.flatten(), torch.tensor([y[0, 2, 0].item(), 1.0]))


@kinds
def test_initial_weights(kind):
    """Recurrent matrices turn and do not stretch; biases are 0, but 1 for the forget gate."""
    layer = kind(D, GatedOptions(d_state=H))
    for gate in layer.rnn.weight_hh_l0.split(H):
        torch.testing.assert_close(gate @ gate.T, torch.eye(H))
    gates = (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0).split(H)
    expected = [0, 0, 0] if kind is GRU else [0, 1, 0, 0]
    assert [gate.unique().tolist() for gate in gates] == [[value] for value in expected]


@kinds
def test_evaluation_mode_has_gradients_and_changes_nothing(kind):
    layer, x = kind(D, GatedOptions(d_state=H)), torch.randn(1, 4, D, requires_grad=True)
    arguments = (x, layer.initial_state(1), Packing.unbroken(1, 4))
    trained, evaluated = layer(*arguments)[0], layer.eval()(*arguments)[0]
    assert torch.equal(trained, evaluated)
    assert not layer.training
    assert layer.rnn.training  # or cuDNN refuses the gradient
    assert torch.autograd.grad(evaluated.sum(), x)[0].abs().max() > 0


@kinds
def test_a_copy_lays_its_weights_out_again(kind, monkeypatch):
    """Else cuDNN compacts them at every call, and warns."""
    laid_out = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: laid_out.append(self))
    copied = copy.deepcopy(kind(D, GatedOptions(d_state=H)))
    assert any(network is copied.rnn for network in laid_out)


@kinds
def test_a_row_without_a_valid_step_keeps_its_state(kind):
    layer, state = kind(D, GatedOptions(d_state=H)), torch.randn(2, kind.parts, H)
    x, nothing = torch.randn(2, 3, D), torch.zeros(2, 3, dtype=torch.bool)
    y, final = layer(x, state, Packing(nothing, nothing))
    assert torch.equal(final, state)
    assert y.isfinite().all()


@kinds
@pytest.mark.parametrize("d_state", [0, -1])
def test_bad_options_are_named(kind, d_state):
    with pytest.raises(UserError, match=f"d_state {d_state}"):
        kind(D, GatedOptions(d_state=d_state))


@kinds
@pytest.mark.parametrize("rules", sorted(ops.RULES))
def test_all_steps_at_once_are_the_marked_steps_one_by_one(kind, rules):
    """Outputs, states and gradients under every rule, over starts and holes."""
    layer = kind(D, GatedOptions(d_state=H))
    start, valid = (torch.zeros(3, 12, dtype=torch.bool) for _ in range(2))
    start[0, 0] = start[1, 5] = start[2, 7] = True
    valid[:, :10] = True
    valid[2, [0, 6, 7]] = False  # an episode's start among them, which is then none
    packing, x = Packing(start, valid), torch.randn(3, 12, D)
    state = torch.randn_like(layer.initial_state(3))
    leaves = [x.requires_grad_(), state.requires_grad_(), *layer.rnn.parameters()]

    def one_by_one():
        return naive.scan(x, layer.rnn, state, packing, marked_step)

    def at_once():
        return marked_scan(x, layer.rnn, state, packing)

    results = []
    for run in (one_by_one, at_once):
        with ops.rules(rules):
            hidden, after = run()
        gradients = torch.autograd.grad((hidden.sin().sum() + after.cos().sum()), leaves)
        results.append((hidden, after, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
