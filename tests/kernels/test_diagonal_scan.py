"""The fast scans equal the equation's loop: states, final state, every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.diagonal_scan import chunked, cpu, diagonal_scan, diagonal_step, naive
from decision_s4.kernels.packing import Packing

POLES, ROWS = 5, 4
needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=needs_compiler)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])
kinds = pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])


def make(
    steps: int, rows: int = ROWS, dtype=torch.complex128, poles: int = POLES
) -> list[torch.Tensor]:
    """u (B, T, P), a (P,) inside the unit circle, state (B, P)."""
    a = torch.randn(poles, dtype=dtype)
    a = a / (1 + a.abs())
    u, state = torch.randn(rows, steps, poles, dtype=dtype), torch.randn(rows, poles, dtype=dtype)
    return [z.requires_grad_() for z in (u, a, state)]


def outcome(run, inputs, packing) -> list[torch.Tensor]:
    """States, final state, and the gradient of a loss on both in every input."""
    x, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view_as(x)
    loss = ((x * (1 - 2j)).real * weights).sum() + final.abs().square().sum()
    return [x, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(
    found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-10
) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@fast
@kinds
@pytest.mark.parametrize("steps", [1, 2, 3, 31, 32, 33, 257, 1000])
def test_it_equals_the_loop(steps, dtype, impl):
    torch.manual_seed(steps)
    inputs = make(steps, dtype=dtype)
    start, valid = torch.rand(ROWS, steps) < 0.05, torch.rand(ROWS, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    packing, run = Packing(start, valid), functools.partial(diagonal_scan, impl=impl)
    assert_all_near(outcome(run, inputs, packing), outcome(naive.scan, inputs, packing))


@needs_compiler
@pytest.mark.parametrize("poles", [1, 2, 4, 8, 9, 15, 16, 17, 33, 40, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_poles_of_any_number_in_vectors_of_any_width(poles, dtype):
    torch.manual_seed(poles)
    inputs = make(37, dtype=dtype, poles=poles)
    packing = Packing(torch.rand(ROWS, 37) < 0.1, torch.rand(ROWS, 37) < 0.8)
    run = functools.partial(diagonal_scan, impl="cpu")
    found, expected = outcome(run, inputs, packing), outcome(naive.scan, inputs, packing)
    assert all(each.dtype == dtype for each in found)
    assert_all_near(found, expected, 1e-10 if inputs[0].real.dtype == torch.float64 else 2e-5)


@fast
def test_views_are_read_as_what_they_stand_for(impl):
    """Conjugates, negated views, parts of tensors, other orders of dimensions, starts too."""
    torch.manual_seed(6)
    start = (torch.rand(7, ROWS) < 0.3).T
    u, a, state = (z.detach() for z in make(7))
    views = u.transpose(0, 1).contiguous().transpose(0, 1).conj(), a.conj(), state.conj()
    real = u.conj().imag, a.conj().imag, state.conj().imag
    assert real[0].is_neg() and views[1].is_conj()
    for inputs in (views, real):
        x, final = diagonal_scan(*inputs, Packing(start), impl=impl)
        expected = naive.scan(*(z.clone() for z in inputs), Packing(start))
        assert_all_near([x, final], list(expected))


@needs_compiler
@kinds
def test_threads_change_no_bit(dtype):
    torch.manual_seed(7)
    arguments = make(300, dtype=dtype, poles=70), Packing(torch.rand(ROWS, 300) < 0.02)
    run = functools.partial(diagonal_scan, impl="cpu")
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(outcome(run, *arguments))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_the_library_cannot_do_is_refused():
    u, a, state = make(3, rows=1)
    packing = Packing.unbroken(1, 3)
    if cpu.library() is not None:
        x, _ = diagonal_scan(u, a, state, packing, impl="cpu")
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
            torch.autograd.grad(x.abs().sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match="do not go together"):
            diagonal_scan(u, a[1:], state, packing, impl="cpu")
        with pytest.raises(RuntimeError, match="do not go together"):
            diagonal_scan(u, a, state, Packing.unbroken(1, 2), impl="cpu")
    half = [z.detach().real.bfloat16() for z in (u, a, state)]
    with pytest.raises(ValueError, match="needs float32, float64, complex64 or complex128 on the"):
        diagonal_scan(*half, packing, impl="cpu")


@fast
def test_a_complex_state_under_real_inputs(impl):
    """What is given is taken as of the type that holds all of it."""
    torch.manual_seed(8)
    u, a, state = make(5)
    u = u.detach().real.clone().requires_grad_()
    run, packing = functools.partial(diagonal_scan, impl=impl), Packing.unbroken(ROWS, 5)
    assert_all_near(
        outcome(run, [u, a, state], packing), outcome(naive.scan, [u, a, state], packing)
    )


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([1, 2, 3, 4, 8, None]))
def test_any_mix_of_starts_and_holes(data, chunk):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 11))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    inputs, packing = make(steps, rows), Packing(start, valid)

    def run(*each):
        return chunked.scan(*each, chunk=chunk) if chunk else diagonal_scan(*each)

    assert_all_near(outcome(run, inputs, packing), outcome(naive.scan, inputs, packing))


def test_the_loop_equals_its_closed_form():
    """x_t = a^(t+1) x_0 + Σ a^(t−s) u_s, without the recurrence."""
    torch.manual_seed(1)
    u, a, state = make(7, rows=2)
    x, final = diagonal_scan(u, a, state, Packing.unbroken(2, 7), impl="naive")
    for t in range(7):
        driven = sum(a ** (t - s) * u[:, s] for s in range(t + 1))
        torch.testing.assert_close(x[:, t], a ** (t + 1) * state + driven, rtol=1e-12, atol=1e-12)
    assert torch.equal(final, x[:, -1])


@impls
@kinds
def test_gradients_equal_finite_differences(impl, dtype):
    torch.manual_seed(2)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))

    def run(u, a, state):
        return diagonal_scan(u, a, state, packing, impl=impl)

    assert torch.autograd.gradcheck(run, make(5, rows=2, dtype=dtype), fast_mode=True)


@impls
def test_a_pole_a_hand_can_check(impl):
    """a = i/2 turns and halves: 1, i/2, −1/4, −i/8; the reset forgets, and a carried 8 is read."""
    u = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.complex128)[..., None]
    start = torch.tensor([[True, False, False, False, True], 5 * [False]])
    state = torch.tensor([[9], [8]], dtype=torch.complex128)
    a = torch.tensor([0.5j], dtype=torch.complex128)
    x, final = diagonal_scan(u, a, state, Packing(start), impl=impl)
    assert x[0].flatten().tolist() == [1, 0.5j, -0.25, -0.125j, 0]
    assert x[1].flatten().tolist() == [4j, -2, -1j, 0.5, 1 + 0.25j]
    assert final.flatten().tolist() == [0, 1 + 0.25j]


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(3)
    u, a, state = make(9, rows=1)
    start, valid = torch.zeros(1, 9, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    start[0, 4], valid[0, 6] = True, False
    clean = diagonal_scan(u, a, state, Packing(start, valid), impl=impl)
    with torch.no_grad():
        u[0, :4], u[0, 6], state[:] = poison, poison, poison
    x, final = diagonal_scan(u, a, state, Packing(start, valid), impl=impl)
    assert torch.equal(x[:, 4:], clean[0][:, 4:])
    assert torch.equal(final, clean[1])
    assert x[0, 6].tolist() == [0] * POLES
    of_second = torch.autograd.grad(x[:, 4:].abs().sum(), u)[0]
    assert of_second[:, 4:].isfinite().all() and of_second[:, :4].abs().max() == 0


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    torch.manual_seed(4)
    u, a, state = make(3)
    nothing = torch.zeros(ROWS, 3, dtype=torch.bool)
    x, final = diagonal_scan(u, a, state, Packing(~nothing, nothing), impl=impl)
    assert x.abs().max() == 0
    assert torch.equal(final, state)


def test_a_step_is_the_scan_of_one_and_writes_nothing():
    torch.manual_seed(5)
    u, a, state = make(1)
    before = state.clone()
    after = diagonal_step(u[:, 0], a, state)
    assert torch.equal(state, before)
    torch.testing.assert_close(after, diagonal_scan(u, a, state, Packing.unbroken(ROWS, 1))[1])


@fast
def test_it_does_not_drift(impl):
    """|a| = 1: the state still turns by exactly a a step after 10,000, and keeps its length."""
    steps, phase = 10_000, torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    a, state = torch.polar(torch.ones_like(phase), phase), torch.ones(1, 3, dtype=torch.complex128)
    x, _ = diagonal_scan(state.new_zeros(1, steps, 3), a, state, Packing.unbroken(1, steps), impl)
    expected = torch.polar(torch.ones_like(phase), phase * steps)
    torch.testing.assert_close(x[0, -1], expected, rtol=0, atol=1e-10)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        diagonal_scan(None, None, None, None, impl="cuda")
