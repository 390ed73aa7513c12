"""The fast scans equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from packed import HEADS, KEY, assert_all_near, outcome
from packed import gated_linear_input as make_input

from decision_s4.kernels.gated_linear import (
    cpu,
    gated_linear,
    naive,
)
from decision_s4.kernels.packing import Packing

compiles = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=compiles)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


@fast
@pytest.mark.parametrize("gates", [1, KEY])
@pytest.mark.parametrize("lowest", [0.0, -0.01, -5.0, -30.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 31, 32, 33, 129])
def test_it_equals_the_loop(steps, lowest, gates, impl):
    torch.manual_seed(steps)
    start, valid = torch.rand(4, steps) < 0.05, torch.rand(4, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    arguments = make_input(4, steps, lowest, gates), Packing(start, valid)
    run = functools.partial(gated_linear, impl=impl)
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@compiles
@pytest.mark.parametrize("gates", ["head", "key"])
@pytest.mark.parametrize(("key", "value"), [(1, 40), (8, 8), (9, 17), (16, 16), (17, 1), (48, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_of_any_size_in_tiles_of_eight_or_sixteen(key, value, gates, dtype):
    torch.manual_seed(value)
    widths = key, key, value, 1 if gates == "head" else key
    *steps, gate = (torch.randn(3, 37, HEADS, width) for width in widths)
    inputs = *steps, -gate.abs(), torch.randn(3, HEADS, key, value)
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    packing = Packing(torch.rand(3, 37) < 0.1, torch.rand(3, 37) < 0.8)
    run = functools.partial(gated_linear, impl="cpu")
    found, expected = outcome(run, inputs, packing), outcome(naive.scan, inputs, packing)
    assert_all_near(found, expected, 1e-10 if dtype == torch.float64 else 2e-4)


@compiles
@pytest.mark.parametrize("steps", [63, 64, 65, 150])
def test_many_tiles_take_turns_along_a_row(steps):
    """More of them than walk a whole row at once."""
    torch.manual_seed(steps)
    *given, gate = torch.randn(4, 2, steps, 1, 33, dtype=torch.float64)
    inputs = *given, -gate.abs(), torch.randn(2, 1, 33, 33, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in inputs]
    packing = Packing(torch.rand(2, steps) < 0.05, torch.rand(2, steps) < 0.8)
    run = functools.partial(gated_linear, impl="cpu")
    assert_all_near(outcome(run, inputs, packing), outcome(naive.scan, inputs, packing))


@compiles
def test_heads_may_share_queries_and_keys():
    torch.manual_seed(4)
    q, k, v, gate, state = (x.detach().requires_grad_() for x in make_input(2, 40))
    shared = [q.detach()[:, :, :1].requires_grad_(), k.detach()[:, :, :1].requires_grad_()]
    packing = Packing(torch.rand(2, 40) < 0.1)

    def loop(q, k, *rest):
        return naive.scan(q.expand_as(k := k.expand(-1, -1, HEADS, -1)), k, *rest)

    inputs = [*shared, v, gate, state]
    assert_all_near(outcome(cpu.scan, inputs, packing), outcome(loop, inputs, packing))


@fast
@pytest.mark.parametrize("gate", [0.0, -5.0, -30.0, -1e4])
def test_constant_gates(gate, impl):
    """From a plain sum to forgetting all at once; at -1e4 every product of gates is 0."""
    torch.manual_seed(0)
    q, k, v, log_gate, state = make_input(2, 70)
    inputs = [q, k, v, torch.full_like(log_gate, gate, requires_grad=True), state]
    packing, run = Packing.unbroken(2, 70), functools.partial(gated_linear, impl=impl)
    assert_all_near(outcome(run, inputs, packing), outcome(naive.scan, inputs, packing))
    if gate == 0:
        total = torch.einsum("bthk,bthv->bhkv", k, v) + state
        torch.testing.assert_close(run(*inputs, packing)[1], total)


@fast
def test_one_gate_a_head_stands_for_all_its_keys(impl):
    torch.manual_seed(1)
    *inputs, gate, state = make_input(2, 40, gates=1)
    packing, run = Packing.unbroken(2, 40), functools.partial(gated_linear, impl=impl)
    found = outcome(run, [*inputs, gate, state], packing)
    expected = outcome(naive.scan, [*inputs, gate, state], packing)
    assert_all_near(found, expected)
    wide = run(*inputs, gate.expand(-1, -1, -1, KEY), state, packing)
    assert_all_near(found[:2], wide)


@impls
def test_it_is_attention_with_decay(impl):
    """o_t = Σ_s (q_t · (k_s ⊙ exp Σ_{s<r≤t} g_r)) v_s, without the recurrence."""
    torch.manual_seed(2)
    q, k, v, gate, state = make_input(1, 6)
    packing = Packing.unbroken(1, 6)
    o, _ = gated_linear(q, k, v, gate, torch.zeros_like(state), packing, impl=impl)
    for h in range(HEADS):
        for t in range(6):
            decays = [gate[0, s + 1 : t + 1, h].sum(0).exp() for s in range(t + 1)]
            weights = [(q[0, t, h] * k[0, s, h] * decays[s]).sum() for s in range(t + 1)]
            expected = sum(weight * v[0, s, h] for s, weight in enumerate(weights))
            torch.testing.assert_close(o[0, t, h], expected)


@impls
def test_a_state_a_hand_can_check(impl):
    """Gates 1/2 and 1: S = (8/2 + 1, 8 + 2) = (5, 10), then (5/2, 10); then k alone, (3, 1)."""
    k = torch.tensor([[1.0, 2], [0, 0], [3, 1]]).view(1, 3, 1, 2)
    gate = torch.tensor([0.5, 1]).log().expand(1, 3, 1, 2)
    start = torch.tensor([[False, False, True]])
    q, v, state = (
        torch.tensor([1.0, 10]).expand_as(k),
        torch.ones(1, 3, 1, 1),
        torch.full((1, 1, 2, 1), 8.0),
    )
    o, final = gated_linear(q, k, v, gate, state, Packing(start), impl=impl)
    torch.testing.assert_close(o.flatten(), torch.tensor([105.0, 102.5, 13]))
    assert final.flatten().tolist() == [3, 1]


@impls
def test_types_may_be_mixed(impl):
    """q, k, v in bfloat16, gates and state in float32, as the fused kernels take them."""
    inputs, packing = [x.detach() for x in make_input(2, 40)], Packing.unbroken(2, 40)
    mixed = [x.bfloat16() if i < 3 else x.float() for i, x in enumerate(inputs)]
    o, final = gated_linear(*mixed, packing, impl=impl)
    expected = gated_linear(*(x.double() for x in mixed), packing, impl="naive")
    assert (o.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert (o - expected[0]).norm() <= 4e-3 * expected[0].norm()
    assert (final - expected[1]).norm() <= 1e-6 * expected[1].norm()


@fast
@pytest.mark.parametrize("lowest", [0.0, -5.0, -30.0])
def test_float32_stays_near_float64(lowest, impl):
    """Outputs and gradients are finite and near, whatever the gates."""
    torch.manual_seed(7)
    inputs, packing = make_input(2, 200, lowest), Packing.unbroken(2, 200)
    expected = outcome(naive.scan, inputs, packing)
    single = [each.detach().float().requires_grad_() for each in inputs]
    run = functools.partial(gated_linear, impl=impl)
    for a, b in zip(outcome(run, single, packing), expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 1e-6 * b.norm() + 1e-6
