"""Sliding-window attention beside a loop over steps, torch's own attention, and cases by hand."""

import math

import pytest
import torch
from torch import nn

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.attention import Ring
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D = 8


def make(d_model: int = D, **options) -> Transformer:
    torch.manual_seed(0)
    mixer = Transformer(d_model, TransformerOptions(**options)).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.7)
    return mixer


def data(rows: int, steps: int, start_rate: float = 0.1, invalid_rate: float = 0.2):
    torch.manual_seed(steps)
    x = torch.randn(rows, steps, D, dtype=torch.float64)
    start, skipped = torch.rand(2, rows, steps)
    valid = skipped >= invalid_rate
    return x, Packing((start < start_rate) & valid, valid)


def loop(mixer: Transformer, x: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Step by step from the equation; the rotary angle of a pair is its age times a frequency."""
    heads, width, window = mixer.heads, mixer.width, mixer.context
    omega = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    omega = omega * (mixer.options.positions == "rotary")

    def score(query, key, age):
        pairs = torch.complex(*query.view(2, -1)), torch.complex(*key.view(2, -1))
        return (pairs[0] * torch.exp(1j * age * omega) * pairs[1].conj()).real.sum()

    y = torch.zeros_like(x)
    for b, t in packing.valid.nonzero().tolist():
        if t == 0 or packing.start[b, t] or not packing.valid[b, :t].any():
            seen = []
        q, k, v = mixer.queries_keys_values(x[b, t]).view(3, heads, width)
        seen = [(k, v), *seen][:window]  # newest first: the place is the age
        for h in range(heads):
            scores = [score(q[h], key[h], age) for age, (key, _) in enumerate(seen)]
            weights = (torch.stack(scores) / math.sqrt(width)).softmax(0)
            values = torch.stack([value[h] for _, value in seen])
            y[b, t, h * width : (h + 1) * width] = weights @ values
    return mixer.out(y)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize(("window", "steps"), [(1, 9), (2, 9), (5, 23), (20, 45), (60, 30)])
def test_it_is_the_equation(window, steps, positions):
    mixer = make(n_heads=2, window=window, positions=positions)
    x, packing = data(2, steps)
    y, _ = mixer(x, mixer.initial_state(2), packing)
    expected = loop(mixer, x, packing)
    torch.testing.assert_close(y[packing.valid], expected[packing.valid], rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_without_positions_it_is_the_attention_of_torch():
    mixer = make(n_heads=4, window=7, positions="none")
    theirs = nn.MultiheadAttention(D, 4, batch_first=True).double()
    theirs.in_proj_weight.copy_(mixer.queries_keys_values.weight)
    theirs.in_proj_bias.copy_(mixer.queries_keys_values.bias)
    theirs.out_proj.load_state_dict(mixer.out.state_dict())
    x, age = data(3, 30)[0], torch.arange(30)[:, None] - torch.arange(30)
    expected, _ = theirs(x, x, x, attn_mask=(age < 0) | (age >= 7), need_weights=False)
    found, _ = mixer(x, mixer.initial_state(3), Packing.unbroken(3, 30))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_without_a_question_it_is_a_moving_average_by_hand():
    mixer = make(2, n_heads=1, window=3)
    mixer.queries_keys_values.weight.zero_()
    mixer.queries_keys_values.bias.zero_()
    mixer.queries_keys_values.weight[4:] = torch.eye(2)  # values are the input
    mixer.out.weight.copy_(torch.eye(2)), mixer.out.bias.zero_()
    x = torch.tensor([[[6.0, 1], [0, 1], [3, 1], [9, 1], [12, 1]]], dtype=torch.float64)
    start = torch.tensor([[True, False, False, False, True]])
    y, state = mixer(x, mixer.initial_state(1), Packing(start))
    assert y[0, :, 0].tolist() == [6, 3, 3, 4, 12]
    assert state.values[0, :, 0, 0].tolist() == [0, 12]
    assert state.present.tolist() == [[0, 1]]


@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_the_window_is_exactly_that_long_in_each_layer(window):
    for layers in (1, 2):
        torch.manual_seed(0)
        backbone = make_backbone("transformer", D, layers, window=window).double()
        x = torch.randn(1, 50, D, dtype=torch.float64, requires_grad=True)
        y, _ = backbone(x)
        (gradient,) = torch.autograd.grad(y[:, 40].sin().sum(), x)
        seen = (gradient.abs().amax(-1)[0] > 0).nonzero().flatten()
        assert (seen.min(), seen.max()) == (40 - layers * (window - 1), 40)


@torch.no_grad()
def test_only_positions_tell_the_order_of_the_past():
    x, _ = data(1, 6)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    for positions, equal in {"rotary": False, "none": True}.items():
        mixer = make(positions=positions)
        packing = Packing.unbroken(1, 6)
        first, second = (mixer(z, mixer.initial_state(1), packing)[0][:, -1] for z in (x, swapped))
        assert torch.allclose(first, second, rtol=1e-10) is equal


@torch.no_grad()
def test_ten_thousand_steps_leave_no_trace():
    mixer = make(window=5)
    x, state, constants = torch.randn(10_000, 2, D).double(), mixer.initial_state(2), None
    constants = mixer.constants()
    for x_t in x:
        y, state = mixer.step(x_t, state, constants)
    last = x[-5:].transpose(0, 1)
    expected, fresh = mixer(last, mixer.initial_state(2), Packing.unbroken(2, 5))
    torch.testing.assert_close(y, expected[:, -1], rtol=1e-12, atol=1e-12)
    for found, wanted in zip(state, fresh, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_long_row_costs_no_square_of_its_length():
    """200,000² attention weights would fill 160 GB."""
    mixer = Transformer(4, TransformerOptions(n_heads=1, window=4))
    x, packing = torch.randn(1, 200_000, 4), Packing.unbroken(1, 200_000)
    y, _ = mixer(x, mixer.initial_state(1), packing)
    tail, _ = mixer(x[:, -4:], mixer.initial_state(1), Packing.unbroken(1, 4))
    torch.testing.assert_close(y[:, -1], tail[:, -1])


@torch.no_grad()
def test_a_row_without_valid_steps_keeps_its_state():
    mixer = make()
    x, _ = data(2, 4)
    state = Ring(*(torch.randn_like(leaf) for leaf in mixer.initial_state(2)))
    valid = torch.tensor([[False] * 4, [True, False, False, False]])
    y, after = mixer(x, state, Packing(torch.zeros_like(valid), valid))
    assert y.isfinite().all()
    for new, old in zip(after, state, strict=True):
        assert torch.equal(new[0], old[0])
        assert not torch.equal(new[1], old[1])
    _, after = mixer(x, state, Packing(torch.zeros_like(valid), torch.zeros_like(valid)))
    assert all(map(torch.equal, after, state))


def test_the_state_is_a_ring_of_the_last_steps_but_one():
    state = Transformer(8, TransformerOptions(n_heads=2, window=5)).initial_state(3)
    assert [tuple(leaf.shape) for leaf in state] == [(3, 4, 2, 4), (3, 4, 2, 4), (3, 4)]
    assert make_backbone("transformer", 8, window=5).context == 5


def test_attention_dropout_is_for_training_alone():
    mixer = make(attention_dropout=0.5)
    x, packing = data(1, 9)
    state = mixer.initial_state(1)
    assert not torch.equal(mixer(x, state, packing)[0], mixer(x, state, packing)[0])
    mixer.eval()
    assert torch.equal(mixer(x, state, packing)[0], mixer(x, state, packing)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "n_heads 3 does not divide d_model 8"),
        ({"n_heads": 0}, "n_heads 0"),
        ({"n_heads": 8}, "odd.*positions=none"),
        ({"window": 0}, "window 0"),
        ({"positions": "rotari"}, "did you mean 'rotary'"),
        ({"attention_dropout": 1.0}, "attention_dropout 1.0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("transformer", 8, **options)
