"""The fast paths of GRU and LSTM equal the equation's loop: outputs, state, every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decision_s4.kernels.gated_scan import fused, gated_scan, gated_step
from decision_s4.kernels.packing import Packing

D, H, ROWS = 3, 5, 4
impls = pytest.mark.parametrize("impl", ["naive", "torch", "fused"])
fast = pytest.mark.parametrize("impl", ["torch", "fused"])
kinds = pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])


def make(kind: type, steps: int, rows: int = ROWS):
    """x (B, T, D), a network with every parameter drawn, state (B, parts, H)."""
    network = kind(D, H).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    parts = 2 if kind is nn.LSTM else 1
    x = torch.randn(rows, steps, D, dtype=torch.float64, requires_grad=True)
    return x, network, torch.randn(rows, parts, H, dtype=torch.float64, requires_grad=True)


def outcome(impl: str, x, network, state, packing) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every float input."""
    y, final = gated_scan(x, network, state, packing, impl)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    inputs = [x, state, *network.parameters()]
    return [y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@fast
@kinds
@pytest.mark.parametrize("steps", [1, 2, 3, 64, 257])
def test_fast_paths_equal_the_loop(impl, kind, steps):
    torch.manual_seed(steps)
    start, valid = torch.rand(ROWS, steps) < 0.05, torch.rand(ROWS, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    arguments = (*make(kind, steps), Packing(start, valid))
    assert_all_near(outcome(impl, *arguments), outcome("naive", *arguments))


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from([nn.GRU, nn.LSTM]))
def test_any_mix_of_starts_and_holes(data, kind):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    arguments = (*make(kind, steps, rows), Packing(start, valid))
    assert_all_near(outcome("torch", *arguments), outcome("naive", *arguments))


def gru_by_hand(x, network, h):
    """One step of x (D,), h (1, H), from the equation."""
    (h,) = h
    w_r, w_z, w_n = (network.weight_ih_l0 @ x + network.bias_ih_l0).split(H)
    u_r, u_z, u_n = (network.weight_hh_l0 @ h + network.bias_hh_l0).split(H)
    r, z = 1 / (1 + torch.exp(-w_r - u_r)), 1 / (1 + torch.exp(-w_z - u_z))
    n = torch.tanh(w_n + r * u_n)
    return ((1 - z) * n + z * h)[None]


def lstm_by_hand(x, network, parts):
    """One step of x (D,), parts (2, H), from the equation."""
    h, c = parts
    total = network.weight_ih_l0 @ x + network.bias_ih_l0
    total = total + network.weight_hh_l0 @ h + network.bias_hh_l0
    i, f, g, o = total.split(H)
    i, f, o = (1 / (1 + torch.exp(-gate)) for gate in (i, f, o))
    c = f * c + i * torch.tanh(g)
    return torch.stack([o * torch.tanh(c), c])


@impls
@kinds
def test_outputs_equal_the_equation(impl, kind):
    torch.manual_seed(1)
    x, network, state = make(kind, 9, rows=1)
    start = torch.zeros(1, 9, dtype=torch.bool)
    start[0, 4] = True
    y, final = gated_scan(x, network, state, Packing(start), impl)
    by_hand, parts = gru_by_hand if kind is nn.GRU else lstm_by_hand, state[0]
    for t in range(9):
        parts = by_hand(x[0, t], network, torch.zeros_like(parts) if t == 4 else parts)
        torch.testing.assert_close(y[0, t], parts[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(final[0], parts, rtol=1e-12, atol=1e-12)


@impls
@kinds
def test_gradients_equal_finite_differences(impl, kind):
    torch.manual_seed(2)
    x, network, state = make(kind, 5, rows=2)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))

    def run(x, state, *_parameters):
        return gated_scan(x, network, state, packing, impl)

    assert torch.autograd.gradcheck(run, (x, state, *network.parameters()), fast_mode=True)


@impls
@kinds
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, kind, poison):
    torch.manual_seed(3)
    x, network, state = make(kind, 9, rows=1)
    start, valid = torch.zeros(1, 9, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    start[0, 4], valid[0, 6] = True, False
    clean = gated_scan(x, network, state, Packing(start, valid), impl)
    with torch.no_grad():
        x[0, :4], x[0, 6], state[:] = poison, poison, poison
    y, final = gated_scan(x, network, state, Packing(start, valid), impl)
    assert torch.equal(y[:, 4:], clean[0][:, 4:])
    assert torch.equal(final, clean[1])
    assert y[0, 6].tolist() == [0] * H
    (gradient,) = torch.autograd.grad(y[:, 4:].square().sum(), x)
    assert gradient[:, 4:].isfinite().all()


@impls
@kinds
def test_a_row_without_a_valid_step_keeps_its_state(impl, kind):
    torch.manual_seed(4)
    x, network, state = make(kind, 3)
    nothing = torch.zeros(ROWS, 3, dtype=torch.bool)
    y, final = gated_scan(x, network, state, Packing(~nothing, nothing), impl)
    assert y.abs().max() == 0
    assert torch.equal(final, state)


@kinds
def test_a_step_neither_writes_nor_shares_its_state(kind):
    torch.manual_seed(5)
    x, network, state = make(kind, 1)
    before = state.clone()
    after = gated_step(x[:, 0], network, state)
    assert torch.equal(state, before)
    assert after.data_ptr() != state.data_ptr()
    torch.testing.assert_close(after, gated_scan(x, network, state, Packing.unbroken(ROWS, 1))[1])


@kinds
def test_a_second_derivative_is_refused_rather_than_wrong(kind):
    torch.manual_seed(6)
    x, network, state = make(kind, 3)
    y, _ = gated_scan(x, network, state, Packing.unbroken(ROWS, 3), impl="torch")
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_unknown_implementation_is_refused():
    x, network, state = make(nn.GRU, 1)
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        gated_scan(x, network, state, Packing.unbroken(ROWS, 1), impl="cuda")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(("every", "pays"), [(100, True), (4, False)])
def test_onednn_is_taken_for_long_episodes_and_is_the_equation(every, pays):
    torch.manual_seed(7)
    x, network, state = make(nn.LSTM, 100)
    network, x, state = network.float(), x.detach().float(), state.detach().float()
    start = torch.arange(100).expand(ROWS, -1) % (every + torch.arange(ROWS)[:, None]) == 0
    packing = Packing(start)
    assert fused.pays(x, network, packing) is pays
    outcomes = [
        outcome(impl, x.requires_grad_(), network, state.requires_grad_(), packing)
        for impl in ("fused", "naive")
    ]
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
