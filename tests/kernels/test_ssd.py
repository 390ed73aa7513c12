"""The fast scans equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from packed import SSD_HEADS, assert_all_near, outcome
from packed import ssd_input as make_input

from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import cpu, naive, ssd

compiles = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=compiles)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])


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
    x, state = torch.randn(3, 37, SSD_HEADS, width), torch.randn(3, SSD_HEADS, width, size)
    B, C = torch.randn(2, 3, 37, size)
    inputs = [each.detach().to(dtype).requires_grad_() for each in (x, delta, A, B, C, state)]
    packing = Packing(torch.rand(3, 37) < 0.1, torch.rand(3, 37) < 0.8)
    run = functools.partial(ssd, impl="cpu")
    found, expected = outcome(run, inputs, packing), outcome(naive.scan, inputs, packing)
    assert_all_near(found, expected, 1e-10 if dtype == torch.float64 else 5e-4)


@impls
def test_it_is_attention_with_decay(impl):
    """y_t = Σ_s (C_t · B_s) exp(A Σ_{s<r≤t} Δ_r) Δ_s x_s, without the recurrence (equation 16)."""
    torch.manual_seed(1)
    x, delta, A, B, C, state = make_input(1, 6)
    y, _ = ssd(x, delta, A, B, C, torch.zeros_like(state), Packing.unbroken(1, 6), impl=impl)
    for h in range(SSD_HEADS):
        for t in range(6):
            terms = [
                (C[0, t] @ B[0, s]) * (A[h] * delta[0, s + 1 : t + 1, h].sum()).exp()
                * delta[0, s, h] * x[0, s, h]
                for s in range(t + 1)
            ]  # fmt: skip
            torch.testing.assert_close(y[0, t, h], sum(terms))


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
