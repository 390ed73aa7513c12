"""The fast delta rules equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from decision_s4.kernels.delta_rule import chunked, cpu, delta_rule, naive
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.packing import Packing

HEADS, KEY, VALUE = 2, 3, 4
COMPILED = pytest.param(
    "cpu", marks=pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


def make_input(rows: int, steps: int, lowest: float = -1.0, gates: int = KEY) -> list[torch.Tensor]:
    """q, k, β k (B, T, H, K) with |k| = 1 and β in (0, 2), v, log gates in [lowest, 0], state."""
    q, k = torch.randn(2, rows, steps, HEADS, KEY, dtype=torch.float64)
    k = F.normalize(k, dim=-1)
    w = 2 * torch.rand(rows, steps, HEADS, 1, dtype=torch.float64) * k
    v = torch.randn(rows, steps, HEADS, VALUE, dtype=torch.float64)
    gate = lowest * torch.rand(rows, steps, HEADS, gates, dtype=torch.float64)
    state = torch.randn(rows, HEADS, KEY, VALUE, dtype=torch.float64)
    return [each.requires_grad_() for each in (q, k, w, v, gate, state)]


def outcome(run, inputs, packing: Packing) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every input."""
    o, final = run(*inputs, packing)
    loss = (o * torch.arange(o.numel()).view_as(o).sin()).sum() + final.cos().sum()
    return [o, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(found, expected, tolerance=1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@fast
@pytest.mark.parametrize("gates", [1, KEY])
@pytest.mark.parametrize("lowest", [0.0, -0.01, -5.0, -30.0])
@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 129])
def test_it_equals_the_loop(steps, lowest, gates, impl):
    torch.manual_seed(steps)
    start, valid = torch.rand(4, steps) < 0.05, torch.rand(4, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    arguments = make_input(4, steps, lowest, gates), Packing(start, valid)
    run = functools.partial(delta_rule, impl=impl)
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
@pytest.mark.parametrize("value", [1, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_of_any_number_in_vectors_of_eight_or_sixteen(value, dtype):
    torch.manual_seed(value)
    start, valid = torch.rand(3, 37) < 0.1, torch.rand(3, 37) < 0.8
    *inputs, v, gate, state = make_input(3, 37)
    v, state = torch.randn(*v.shape[:3], value), torch.randn(*state.shape[:3], value)
    inputs = [x.detach().to(dtype).requires_grad_() for x in (*inputs, v, gate, state)]
    packing, tolerance = Packing(start, valid), 1e-10 if dtype == torch.float64 else 2e-5
    run = functools.partial(delta_rule, impl="cpu")
    found, expected = outcome(run, inputs, packing), outcome(naive.scan, inputs, packing)
    assert_all_near(found, expected, tolerance)


@pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
def test_threads_change_no_bit():
    torch.manual_seed(2)
    arguments = [x.detach().requires_grad_() for x in make_input(3, 200)], Packing.unbroken(3, 200)
    run = functools.partial(delta_rule, impl="cpu")
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(outcome(run, *arguments))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_the_library_cannot_do_is_refused():
    inputs = make_input(1, 3)
    if cpu.library() is not None:
        o, _ = delta_rule(*inputs, Packing.unbroken(1, 3), impl="cpu")
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
            torch.autograd.grad(o.sum(), inputs[0], create_graph=True)
    half = [x.detach().bfloat16() for x in inputs]
    with pytest.raises(ValueError, match="impl 'cpu' needs float32 or float64 on the CPU"):
        delta_rule(*half, Packing.unbroken(1, 3), impl="cpu")


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from([1, 2, 4, 8]))
def test_any_mix_of_starts_and_holes(data, chunk):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 11))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    arguments = make_input(rows, steps), Packing(start, valid)

    def fast(*each):
        return chunked.scan(*each, chunk=chunk)

    assert_all_near(outcome(fast, *arguments), outcome(naive.scan, *arguments))


@impls
def test_a_value_is_replaced_where_attention_would_add_it(impl):
    """7 at key (1, 0), 5 at (0, 1), then 2 at (1, 0) in its place; half of 10 at (0, 1) last."""
    k = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]).view(1, 4, 1, 2)
    beta = torch.tensor([1.0, 1, 1, 0.5]).view(1, 4, 1, 1)
    v = torch.tensor([7.0, 5, 2, 10]).view(1, 4, 1, 1)
    q, gate, state = torch.tensor([1.0, 100]).expand_as(k), torch.zeros_like(v), v[:, :1] * 0
    state = torch.zeros(1, 1, 2, 1)
    packing = Packing.unbroken(1, 4)
    o, final = delta_rule(q, k, beta * k, v, gate, state, packing, impl=impl)
    assert o.flatten().tolist() == [7, 507, 502, 752]
    assert final.flatten().tolist() == [2, 7.5]


@impls
def test_the_decay_comes_first(impl):
    """8 halves to 4 before the look-up: at β = 1 the value 1 stands alone, not 1 − 8/2 + 4."""
    one = torch.ones(1, 1, 1, 1)
    o, _ = delta_rule(
        one, one, one, one, one * -0.6931472, 8 * one, Packing.unbroken(1, 1), impl=impl
    )
    torch.testing.assert_close(o, one)


def test_keys_that_never_meet_leave_gated_linear_attention():
    torch.manual_seed(1)
    q, _, w, v, gate, state = make_input(2, 40)
    packing = Packing.unbroken(2, 40)
    found = delta_rule(q, torch.zeros_like(w), w, v, gate, state, packing)
    assert_all_near(found, gated_linear(q, w, v, gate, state, packing))


@impls
def test_gradients_equal_finite_differences(impl):
    torch.manual_seed(3)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))
    assert torch.autograd.gradcheck(
        lambda *inputs: delta_rule(*inputs, packing, impl=impl), make_input(2, 5), fast_mode=True
    )


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(5)
    inputs = make_input(1, 9)
    start, hole = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    packing = Packing(start, ~hole)
    clean, clean_final = delta_rule(*inputs, packing, impl=impl)
    with torch.no_grad():
        *steps, state = inputs
        state[:] = poison
        for each in steps:
            each[0, :4], each[0, 6] = poison, poison
    o, final = delta_rule(*inputs, packing, impl=impl)
    assert torch.equal(o[:, 4:], clean[:, 4:])
    assert torch.equal(final, clean_final)
    assert o[0, 6].abs().max() == 0


@fast
@pytest.mark.parametrize("lowest", [0.0, -5.0, -30.0])
def test_float32_stays_near_float64(lowest, impl):
    torch.manual_seed(7)
    inputs, packing = make_input(2, 200, lowest), Packing.unbroken(2, 200)
    expected = outcome(naive.scan, inputs, packing)
    single = [each.detach().float().requires_grad_() for each in inputs]
    for a, b in zip(
        outcome(functools.partial(delta_rule, impl=impl), single, packing), expected, strict=True
    ):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 3e-6 * b.norm() + 1e-6


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        delta_rule(*[None] * 7, impl="cuda")
