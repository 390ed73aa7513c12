"""The shifted convolution equals the equation's loop: outputs, final state, every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import cpu, short_conv, short_conv_step

WIDTH = 3
COMPILED = [] if cpu.library() is None else ["cpu"]
impls = pytest.mark.parametrize("impl", ["naive", "torch", *COMPILED])


def make_input(rows: int, steps: int, taps: int = 4, bias: bool = True):
    """x (B, T, D), weight (D, W), bias (D,) or None, state (B, D, W − 1)."""
    shapes = [(rows, steps, WIDTH), (WIDTH, taps), (WIDTH,), (rows, WIDTH, taps - 1)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return inputs if bias else [*inputs[:2], None, inputs[3]]


def outcome(impl: str, inputs, packing: Packing) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every input."""
    y, final = short_conv(*inputs, packing, impl=impl)
    loss = (y * torch.arange(y.numel()).view_as(y).sin()).sum() + final.cos().sum()
    given_ones = [each for each in inputs if each is not None]
    return [y, final, *torch.autograd.grad(loss, given_ones, materialize_grads=True)]


def assert_same(inputs, packing: Packing) -> None:
    expected = outcome("naive", inputs, packing)
    for impl in ("torch", *COMPILED):
        for a, b in zip(outcome(impl, inputs, packing), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 5), st.booleans(), st.booleans())
def test_any_mix_of_starts_and_holes(data, taps, bias, holes):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    assert_same(make_input(rows, steps, taps, bias), Packing(start, valid if holes else None))


@pytest.mark.parametrize("lengths", [(9, 9), (9, 4), (1, 0)])
def test_padding_alone_is_no_hole(lengths):
    torch.manual_seed(6)
    valid = torch.arange(9) < torch.tensor(lengths)[:, None]
    packing = Packing(torch.rand(2, 9) < 0.3, valid)
    assert packing.ordered
    assert_same(make_input(2, 9), packing)


@impls
def test_without_starts_it_is_the_convolution_of_torch(impl):
    torch.manual_seed(1)
    x, weight, bias, state = make_input(2, 10)
    y, final = short_conv(x, weight, bias, state, Packing.unbroken(2, 10), impl=impl)
    past = torch.cat([state, x.transpose(1, 2)], dim=2)
    expected = F.conv1d(past, weight[:, None], bias, groups=WIDTH).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    assert torch.equal(final, x[:, -3:].transpose(1, 2))


@impls
def test_values_a_hand_can_check(impl):
    """y_t = 100 x_t + 10 x_{t−1} + x_{t−2}; a start at step 2; step 4 is a hole."""
    x = torch.tensor([3.0, 4, 5, 6, 9, 7]).view(1, 6, 1)
    start, valid = (torch.tensor([[t == at for t in range(6)]]) for at in (2, 4))
    weight, state = torch.tensor([[1.0, 10, 100]]), torch.tensor([[[1.0, 2]]])
    y, final = short_conv(x, weight, None, state, Packing(start, ~valid), impl=impl)
    assert y.flatten().tolist() == [321, 432, 500, 650, 0, 765]
    assert final.tolist() == [[[6, 7]]]


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(2)
    inputs = make_input(1, 9)
    start, valid = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    packing = Packing(start, ~valid)
    clean, clean_final = short_conv(*inputs, packing, impl=impl)
    with torch.no_grad():
        x, _, _, state = inputs
        x[0, :4], x[0, 6], state[:] = poison, poison, poison
    y, final = short_conv(*inputs, packing, impl=impl)
    assert torch.equal(y[:, 4:], clean[:, 4:])
    assert torch.equal(final, clean_final)
    in_x, in_state = torch.autograd.grad(y[:, 4:].sum() + final.sum(), [x, state])
    assert in_x.isfinite().all()
    assert in_x[:, :4].abs().max() == in_state.abs().max() == in_x[0, 6].abs().max() == 0


@pytest.mark.parametrize("impl", ["torch", *COMPILED])
def test_poisoned_holes_leave_the_weights_gradient_clean(impl):
    torch.manual_seed(3)
    x, weight, bias, state = make_input(2, 6)
    valid = torch.arange(6).expand(2, 6) < 4
    with torch.no_grad():
        x[:, 4:] = float("nan")
    packing = Packing(torch.zeros_like(valid), valid)
    y, _ = short_conv(x, weight, bias, state, packing, impl=impl)
    expected, _ = short_conv(x[:, :4], weight, bias, state, Packing.unbroken(2, 4), "naive")
    found, wanted = (torch.autograd.grad(each.sum(), weight)[0] for each in (y, expected))
    torch.testing.assert_close(found, wanted)


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    torch.manual_seed(4)
    *inputs, state = make_input(2, 3)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    y, final = short_conv(*inputs, state, Packing(~nothing, nothing), impl=impl)
    assert y.abs().max() == 0
    assert torch.equal(final, state)


def test_a_step_neither_writes_nor_shares_its_state():
    torch.manual_seed(5)
    x, weight, bias, state = make_input(2, 1)
    before = state.detach().clone()
    y, after = short_conv_step(x[:, 0], weight, bias, state)
    assert torch.equal(state, before)
    assert torch.equal(after, torch.cat([state, x.transpose(1, 2)], 2)[..., 1:])
    assert torch.equal(
        y, short_conv(x, weight, bias, state, Packing.unbroken(2, 1), "naive")[0][:, 0]
    )
    with torch.no_grad():
        after.zero_()
    assert torch.equal(state, before)


@pytest.mark.skipif(not COMPILED, reason="needs a C++ compiler and ninja")
def test_threads_change_no_bit_and_second_derivatives_are_refused():
    torch.manual_seed(7)
    inputs, packing = make_input(3, 4000, 2), Packing.unbroken(3, 4000)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(outcome("cpu", inputs, packing))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    y, _ = short_conv(*inputs, packing, impl="cpu")
    with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
        torch.autograd.grad(y.sum(), inputs[0], create_graph=True)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        short_conv(None, None, None, None, None, impl="cuda")
