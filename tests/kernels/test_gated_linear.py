"""The fast scans equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.gated_linear import (
    chunked,
    cpu,
    gated_linear,
    gated_linear_step,
    naive,
)
from decision_s4.kernels.packing import Packing

HEADS, KEY, VALUE = 2, 3, 4
compiles = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=compiles)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


def make_input(rows: int, steps: int, lowest: float = -1.0, gates: int = KEY) -> list[torch.Tensor]:
    """q, k (B, T, H, K), v (B, T, H, V), log gates in [lowest, 0], state (B, H, K, V)."""
    shapes = [(rows, steps, HEADS, width) for width in (KEY, KEY, VALUE, gates)]
    *qkv, gate = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    state = torch.randn(rows, HEADS, KEY, VALUE, dtype=torch.float64)
    gate = lowest * torch.rand_like(gate)
    return [each.requires_grad_() for each in (*qkv, gate, state)]


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
def test_a_row_of_no_steps_keeps_its_state():
    inputs = make_input(2, 0)
    o, final = gated_linear(*inputs, Packing.unbroken(2, 0), impl="cpu")
    assert o.shape == (2, 0, HEADS, VALUE) and torch.equal(final, inputs[-1])
    gradients = torch.autograd.grad(final.sum(), inputs)
    assert torch.equal(gradients[-1], torch.ones_like(final))


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


@compiles
def test_threads_change_no_bit():
    torch.manual_seed(2)
    arguments = make_input(3, 200), Packing.unbroken(3, 200)
    run = functools.partial(gated_linear, impl="cpu")
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(outcome(run, *arguments))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@compiles
def test_every_element_is_written(nan_in_empty_memory):
    """Holes and rows without a valid step too, of outputs and of gradients."""
    torch.manual_seed(3)
    valid = torch.rand(3, 37) < 0.5
    valid[1] = False
    arguments = make_input(3, 37), Packing(torch.rand(3, 37) < 0.1, valid)
    with nan_in_empty_memory():
        found = outcome(functools.partial(gated_linear, impl="cpu"), *arguments)
    assert_all_near(found, outcome(naive.scan, *arguments))


def test_what_the_library_cannot_do_is_refused():
    inputs = make_input(1, 3)
    if cpu.library() is not None:
        o, _ = gated_linear(*inputs, Packing.unbroken(1, 3), impl="cpu")
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
            torch.autograd.grad(o.sum(), inputs[0], create_graph=True)
    half = [x.detach().bfloat16() for x in inputs]
    with pytest.raises(ValueError, match="impl 'cpu' needs float32 or float64 on the CPU"):
        gated_linear(*half, Packing.unbroken(1, 3), impl="cpu")


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


def masks(data, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and valid steps, (B, T) each."""
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, longest))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    return start, valid


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([1, 2, 4, 8]))
def test_any_mix_of_starts_and_holes(data, chunk):
    torch.manual_seed(0)
    start, valid = masks(data, 11)
    arguments = make_input(*start.shape), Packing(start, valid)

    def fast(*each):
        return chunked.scan(*each, chunk=chunk)

    assert_all_near(outcome(fast, *arguments), outcome(naive.scan, *arguments))


@compiles
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_mix_of_starts_and_holes_in_the_library(data):
    torch.manual_seed(0)
    start, valid = masks(data, 35)  # it keeps a state in 16 steps
    arguments = make_input(*start.shape), Packing(start, valid)
    run = functools.partial(gated_linear, impl="cpu")
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


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
def test_gradients_equal_finite_differences(impl):
    torch.manual_seed(3)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))
    assert torch.autograd.gradcheck(
        lambda *inputs: gated_linear(*inputs, packing, impl=impl), make_input(2, 5), fast_mode=True
    )


def test_second_derivatives_equal_finite_differences():
    torch.manual_seed(4)
    packing = Packing(torch.tensor([[False, True, False]]))
    assert torch.autograd.gradgradcheck(
        lambda *inputs: gated_linear(*inputs, packing, "torch"), make_input(1, 3), fast_mode=True
    )


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
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(5)
    inputs = make_input(1, 9)
    start, hole = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    packing = Packing(start, ~hole)
    clean, clean_final = gated_linear(*inputs, packing, impl=impl)
    with torch.no_grad():
        *steps, state = inputs
        state[:] = poison
        for each in steps:
            each[0, :4], each[0, 6] = poison, poison
    o, final = gated_linear(*inputs, packing, impl=impl)
    assert torch.equal(o[:, 4:], clean[:, 4:])
    assert torch.equal(final, clean_final)
    assert o[0, 6].abs().max() == 0


@fast
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_no_gradient_comes_from_holes_or_crosses_a_start(poison, impl):
    torch.manual_seed(6)
    *steps, state = make_input(1, 9)
    start, hole = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    with torch.no_grad():
        for each in steps:
            each[0, 6] = poison
    o, final = gated_linear(*steps, state, Packing(start, ~hole), impl)
    *in_steps, in_state = torch.autograd.grad(o[:, 4:].sum() + final.sum(), [*steps, state])
    for gradient in in_steps:
        assert gradient.isfinite().all()
        assert gradient[0, :4].abs().max() == gradient[0, 6].abs().max() == 0
        assert gradient[0, 5].abs().max() > 0
    assert in_state.abs().max() == 0


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


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    torch.manual_seed(8)
    *inputs, state = make_input(2, 3)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    o, final = gated_linear(*inputs, state, Packing(~nothing, nothing), impl=impl)
    assert o.abs().max() == 0
    assert torch.equal(final, state)


def test_a_step_neither_writes_nor_shares_its_state():
    torch.manual_seed(9)
    *inputs, state = make_input(2, 1)
    before = state.detach().clone()
    _, after = gated_linear_step(*(each[:, 0] for each in inputs), state)
    assert torch.equal(state, before)
    assert after.data_ptr() != state.data_ptr()


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        gated_linear(*[None] * 6, impl="cuda")
