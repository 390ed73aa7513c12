"""The fast scans equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import chunked, cpu, naive, ssd, ssd_step

HEADS, WIDTH, SIZE = 3, 2, 4
compiles = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=compiles)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


def make_input(rows: int, steps: int, strength: float = 1.0) -> list[torch.Tensor]:
    """x (B, T, H, P), delta (B, T, H), A (H,), B and C (B, T, N), state (B, H, P, N)."""
    double = torch.float64
    x = torch.randn(rows, steps, HEADS, WIDTH, dtype=double)
    delta = strength * torch.rand(rows, steps, HEADS, dtype=double)
    A = -torch.arange(HEADS, dtype=double)  # the first head forgets nothing
    B, C = torch.randn(2, rows, steps, SIZE, dtype=double)
    state = torch.randn(rows, HEADS, WIDTH, SIZE, dtype=double)
    return [each.requires_grad_() for each in (x, delta, A, B, C, state)]


def outcome(run, inputs, packing: Packing) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every input."""
    y, final = run(*inputs, packing)
    loss = (y * torch.arange(y.numel()).view_as(y).sin()).sum() + final.cos().sum()
    return [y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(found, expected, tolerance=1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@fast
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 63, 64, 65, 257])
def test_it_equals_the_loop(steps, strength, impl):
    torch.manual_seed(steps)
    start, valid = torch.rand(4, steps) < 0.05, torch.rand(4, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    arguments = make_input(4, steps, strength), Packing(start, valid)
    run = functools.partial(ssd, impl=impl)
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@compiles
@pytest.mark.parametrize(("width", "size"), [(1, 40), (8, 16), (17, 9), (32, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_of_any_size_in_tiles_of_eight_or_sixteen(width, size, dtype):
    torch.manual_seed(size)
    _, delta, A, *_ = make_input(3, 37)
    x, state = torch.randn(3, 37, HEADS, width), torch.randn(3, HEADS, width, size)
    B, C = torch.randn(2, 3, 37, size)
    inputs = [each.detach().to(dtype).requires_grad_() for each in (x, delta, A, B, C, state)]
    packing = Packing(torch.rand(3, 37) < 0.1, torch.rand(3, 37) < 0.8)
    run = functools.partial(ssd, impl="cpu")
    found, expected = outcome(run, inputs, packing), outcome(naive.scan, inputs, packing)
    assert_all_near(found, expected, 1e-10 if dtype == torch.float64 else 5e-4)


@compiles
def test_threads_change_no_bit():
    torch.manual_seed(2)
    arguments = make_input(3, 200), Packing.unbroken(3, 200)
    run = functools.partial(ssd, impl="cpu")
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(outcome(run, *arguments))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_the_library_cannot_do_is_refused():
    inputs = make_input(1, 3)
    if cpu.library() is not None:
        y, _ = ssd(*inputs, Packing.unbroken(1, 3), impl="cpu")
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
            torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
    half = [x.detach().bfloat16() for x in inputs]
    with pytest.raises(ValueError, match="ssd: impl 'cpu' needs float32 or float64 on the CPU"):
        ssd(*half, Packing.unbroken(1, 3), impl="cpu")


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
    run = functools.partial(ssd, impl="cpu")
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@impls
def test_it_is_attention_with_decay(impl):
    """y_t = Σ_s (C_t · B_s) exp(A Σ_{s<r≤t} Δ_r) Δ_s x_s, without the recurrence (equation 16)."""
    torch.manual_seed(1)
    x, delta, A, B, C, state = make_input(1, 6)
    y, _ = ssd(x, delta, A, B, C, torch.zeros_like(state), Packing.unbroken(1, 6), impl=impl)
    for h in range(HEADS):
        for t in range(6):
            terms = [
                (C[0, t] @ B[0, s]) * (A[h] * delta[0, s + 1 : t + 1, h].sum()).exp()
                * delta[0, s, h] * x[0, s, h]
                for s in range(t + 1)
            ]  # fmt: skip
            torch.testing.assert_close(y[0, t, h], sum(terms))


@impls
def test_gradients_equal_finite_differences(impl):
    torch.manual_seed(2)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))

    def run(*inputs):
        return ssd(*inputs, packing, impl=impl)

    assert torch.autograd.gradcheck(run, make_input(2, 5), fast_mode=True)


def test_second_derivatives_equal_finite_differences():
    torch.manual_seed(3)
    packing = Packing(torch.tensor([[False, True, False]]))
    assert torch.autograd.gradgradcheck(
        lambda *inputs: ssd(*inputs, packing, "torch"), make_input(1, 3), fast_mode=True
    )


@impls
def test_a_system_a_hand_can_check(impl):
    """a = 1/2, Δ = 1, so H_t = H_{t−1} / 2 + x_t: 8/2 + 1 = 5, 5/2, and 3 after the start."""
    x = torch.tensor([1.0, 0, 3]).view(1, 3, 1, 1)
    one = torch.ones(1, 3, 1)
    start = torch.tensor([[False, False, True]])
    A, state = -torch.log(torch.tensor([2.0])), torch.full((1, 1, 1, 1), 8.0)
    y, final = ssd(x, one, A, one, 2 * one, state, Packing(start), impl=impl)
    torch.testing.assert_close(y.flatten(), torch.tensor([10.0, 5, 6]))
    assert final.item() == 3


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(4)
    x, delta, A, B, C, state = make_input(1, 9)
    start, valid = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    packing = Packing(start, ~valid)
    clean, clean_final = ssd(x, delta, A, B, C, state, packing, impl=impl)
    with torch.no_grad():
        state[:] = poison
        for each in (x, delta, B, C):
            each[0, :4], each[0, 6] = poison, poison
    y, final = ssd(x, delta, A, B, C, state, packing, impl=impl)
    assert torch.equal(y[:, 4:], clean[:, 4:])
    assert torch.equal(final, clean_final)
    assert y[0, 6].abs().max() == 0


@fast
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_no_gradient_comes_from_holes_or_crosses_a_start(poison, impl):
    torch.manual_seed(5)
    inputs = make_input(1, 9)
    start, hole = (torch.tensor([[t == at for t in range(9)]]) for at in (4, 6))
    with torch.no_grad():
        for each in (inputs[0], inputs[1], inputs[3], inputs[4]):
            each[0, 6] = poison
    y, final = ssd(*inputs, Packing(start, ~hole), impl)
    gradients = torch.autograd.grad(y[:, 4:].sum() + final.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient in (gradients[0], gradients[1], gradients[3], gradients[4]):
        assert gradient[0, :4].abs().max() == gradient[0, 6].abs().max() == 0
        assert gradient[0, 4].abs().max() > 0
    assert gradients[5].abs().max() == 0


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    torch.manual_seed(6)
    *inputs, state = make_input(2, 3)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    y, final = ssd(*inputs, state, Packing(~nothing, nothing), impl=impl)
    assert y.abs().max() == 0
    assert torch.equal(final, state)


@fast
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_float32_stays_near_float64(strength, impl):
    """Also where decay is so strong that float32 sums of it would lose their differences."""
    torch.manual_seed(7)
    inputs, packing = make_input(2, 300, strength), Packing.unbroken(2, 300)
    expected, _ = naive.scan(*inputs, packing)
    found, final = ssd(*(each.float() for each in inputs), packing, impl)
    assert found.dtype == final.dtype == torch.float32
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_a_step_neither_writes_nor_shares_its_state():
    torch.manual_seed(8)
    x, delta, A, B, C, state = make_input(2, 1)
    before = state.detach().clone()
    _, after = ssd_step(x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], state)
    assert torch.equal(state, before)
    assert after.data_ptr() != state.data_ptr()


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        ssd(*[None] * 7, impl="cuda")
