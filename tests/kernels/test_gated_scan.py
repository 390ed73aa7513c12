"""The fast paths of GRU and LSTM equal the equation's loop: outputs, state, every gradient."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decision_s4.kernels import choice, extension
from decision_s4.kernels.gated_scan import cpu as cpu_path
from decision_s4.kernels.gated_scan import fused, gated_scan, gated_step
from decision_s4.kernels.packing import Packing

D, H, ROWS = 3, 5, 4
impls = pytest.mark.parametrize("impl", ["naive", "torch", "cpu", "fused"])
fast = pytest.mark.parametrize("impl", ["torch", "cpu", "fused"])
kinds = pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips what needs the C++ library where it cannot be built."""
    params = getattr(request.node, "callspec", None)
    if params and params.params.get("impl") == "cpu" and cpu_path.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")


def make(kind: type, steps: int, rows: int = ROWS, width: int = H):
    """x (B, T, D), a network with every parameter drawn, state (B, parts, H)."""
    network = kind(D, width).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    parts = 2 if kind is nn.LSTM else 1
    x = torch.randn(rows, steps, D, dtype=torch.float64, requires_grad=True)
    return x, network, torch.randn(rows, parts, width, dtype=torch.float64, requires_grad=True)


def masks(steps: int, rows: int = ROWS):
    """(start, valid) with an unbroken row, a full one and one that begins anew."""
    start, valid = torch.rand(rows, steps) < 0.05, torch.rand(rows, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    return start, valid


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
    arguments = (*make(kind, steps), Packing(*masks(steps)))
    assert_all_near(outcome(impl, *arguments), outcome("naive", *arguments))


@kinds
@pytest.mark.parametrize("impl", ["cpu"])
@pytest.mark.parametrize("width", [1, 8, 16, 37, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_widths_beside_a_vector_s(impl, kind, width, dtype, tolerance):
    """Against the loop in float64, of weights that keep its differences from growing."""
    torch.manual_seed(width)
    start, valid = masks(40, rows=9)
    x, network, state = make(kind, 40, 9, width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.div_(2 * width**0.5)
    expected = outcome("naive", x, network, state, Packing(start, valid))
    x, state = (each.detach().to(dtype).requires_grad_() for each in (x, state))
    found = outcome(impl, x, copy.deepcopy(network).to(dtype), state, Packing(start, valid))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert (a - b).norm() <= tolerance * b.norm()


@kinds
@pytest.mark.parametrize("impl", ["cpu"])
def test_bits_hang_neither_on_threads_nor_on_who_shares_the_batch(impl, kind):
    torch.manual_seed(7)
    start, valid = masks(300, rows=13)
    x, network, state = make(kind, 300, 13, 64)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(outcome(impl, x, network, state, Packing(start, valid))[:4])
        alone = gated_scan(x[:1], network, state[:1], Packing(start[:1], valid[:1]), impl)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
    torch.testing.assert_close(alone[0], found[0][0][:1], rtol=1e-12, atol=1e-12)


@kinds
@pytest.mark.parametrize("impl", ["cpu"])
def test_memory_it_did_not_write_is_not_read(impl, kind, nan_in_empty_memory):
    """What it allocates begins as NaN."""
    torch.manual_seed(8)
    arguments = (*make(kind, 33), Packing(*masks(33)))
    expected = outcome("naive", *arguments)
    with nan_in_empty_memory():
        found = outcome(impl, *arguments)
    assert_all_near(found, expected)


@kinds
@pytest.mark.parametrize("impl", ["cpu"])
def test_gates_shut_and_open_to_the_last_bit(impl, kind):
    """Inputs from 1e-9 to 1e4 of both signs: no overflow, no loss near zero."""
    x, network, state = make(kind, 28, rows=2)
    sizes = 10.0 ** torch.arange(-9, 5, dtype=torch.float64)
    with torch.no_grad():
        x.copy_(torch.cat([sizes, -sizes])[None, :, None])
        for parameter in network.parameters():
            parameter.mul_(1 if parameter is network.weight_ih_l0 else 1e-9)
    arguments = x, network, state * 1e-9, Packing(torch.ones(2, 28, dtype=torch.bool))
    found, expected = (gated_scan(*arguments, each)[0] for each in (impl, "naive"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    small = (x[0, :, 0].abs() < 0.1).nonzero().squeeze(1)
    torch.testing.assert_close(found[:, small], expected[:, small], rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from([nn.GRU, nn.LSTM]))
def test_any_mix_of_starts_and_holes(data, kind):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    arguments = (*make(kind, steps, rows), Packing(start, valid))
    expected = outcome("naive", *arguments)
    for impl in ["torch"] + ["cpu"] * bool(cpu_path.library()):
        assert_all_near(outcome(impl, *arguments), expected)


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
@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_a_second_derivative_is_refused_rather_than_wrong(impl, kind):
    torch.manual_seed(6)
    x, network, state = make(kind, 3)
    y, _ = gated_scan(x, network, state, Packing.unbroken(ROWS, 3), impl)
    with pytest.raises(RuntimeError, match=f"impl '{impl}' has no second derivatives"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("impl", ["cpu"])
def test_nothing_is_kept_without_gradients(impl):
    """Nor is what is given written."""
    arguments = (*make(nn.LSTM, 9), Packing(*masks(9)))
    before = [arguments[0].clone(), arguments[2].clone()]
    with torch.no_grad():
        y, final = gated_scan(*arguments, impl)
    assert y.grad_fn is None and final.grad_fn is None
    assert torch.equal(arguments[0], before[0]) and torch.equal(arguments[2], before[1])


def test_the_choice_is_logged_once(caplog):
    choice.fastest_on_cpu.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            gated_scan(*make(nn.GRU, 2), Packing.unbroken(ROWS, 2))
    chosen = "cpu" if cpu_path.library() else "torch"
    lines = [r.message for r in caplog.records if "runs on" in r.message]
    assert lines == [f"gated_scan: '{chosen}' runs on cpu in torch.float64"]


def test_without_a_compiler_it_warns_once_and_runs_in_torch(monkeypatch, caplog):
    def fail(*about):
        raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(extension, "compile_library", fail)
    arguments = (*make(nn.GRU, 5), Packing.unbroken(ROWS, 5))
    expected = gated_scan(*arguments, impl="torch")
    caches = cpu_path.library, choice.fastest_on_cpu
    for cache in caches:
        cache.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [gated_scan(*arguments) for _ in range(2)]
        with pytest.raises(RuntimeError, match="impl 'cpu' needs a C\\+\\+ compiler"):
            gated_scan(*arguments, impl="cpu")
    finally:
        for cache in caches:
            cache.cache_clear()
    assert torch.equal(found[0][0], expected[0])
    assert caplog.text.count("Ninja is required") == 1


def test_a_type_that_is_not_compiled_is_refused_by_name_and_runs_in_torch():
    x, network, state = make(nn.GRU, 4)
    half = x.bfloat16(), network.bfloat16(), state.bfloat16()
    packing = Packing.unbroken(ROWS, 4)
    with pytest.raises(ValueError, match="impl 'cpu' needs float32 or float64 on the CPU"):
        gated_scan(*half, packing, impl="cpu")
    assert torch.equal(gated_scan(*half, packing)[0], gated_scan(*half, packing, impl="torch")[0])


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
