"""The fast delta rules equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from packed import KEY, assert_all_near, outcome
from packed import delta_rule_input as make_input

from decision_s4.kernels.delta_rule import cpu, delta_rule, naive
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.packing import Packing

COMPILED = pytest.param(
    "cpu", marks=pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


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
