"""The fused almost-linear recurrence equals the equation: outputs, final state, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_almost_linear_cuda.py
"""

import pytest
import torch

from decision_s4.kernels.almost_linear import almost_linear, naive
from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.packing import Packing

pytest.importorskip("triton")
from decision_s4.kernels.almost_linear import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = fused.TILE
SHAPES = [(1, 1, 5), (2, TILE - 1, 3), (1, TILE, 16), (3, TILE + 1, 17), (3, 2 * TILE + 5, 4)]
SHAPES += [] if INTERPRETED else [(5, 700, 64), (3, 300, 100), (2, 2049, 128), (300, 100, 64)]


def make(rows, steps, units, low=torch.float32):
    """u, decay, W with rows that sum to at most 1, how many units are linear, state."""
    torch.manual_seed(steps)
    weight = torch.randn(units, units)
    weight /= 2 * weight.abs().sum(1, keepdim=True)
    u, state = torch.randn(rows, steps, units), torch.randn(rows, units)
    floats = u, torch.rand(units), weight, state
    u, decay, weight, state = (x.to(DEVICE, low).requires_grad_() for x in floats)
    return [u, decay, weight, units // 2, state]


def packed(rows, steps, holes):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.1, torch.rand(rows, steps) < 1 - holes
    start[0] = False
    return Packing(start.to(DEVICE), valid.to(DEVICE) if holes else None)


def outcome(run, inputs, packing):
    z, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(z.numel(), device=z.device, dtype=torch.float64)).view_as(z)
    loss = (z * weights).sum() + final.cos().sum()
    ramp = torch.arange(final.numel(), device=final.device).view(final.transpose(0, -1).shape)
    loss = loss + (final.transpose(0, -1) * ramp.cos()).sum()  # a gradient in another order
    floats = [x for x in inputs if torch.is_tensor(x)]
    return [z, final, *torch.autograd.grad(loss, floats, materialize_grads=True)]


def equation(inputs, packing):
    """The same in float64 on the CPU."""
    exact = [
        x.detach().cpu().double().requires_grad_() if torch.is_tensor(x) else x for x in inputs
    ]
    valid = None if packing.valid is None else packing.valid.cpu()
    return outcome(naive.scan, exact, Packing(packing.start.cpu(), valid))


def assert_near(found, wanted, tolerance):
    for mine, exact in zip(found, wanted, strict=True):
        assert (mine.detach().cpu() - exact).norm() <= tolerance * exact.norm() + 1e-6


@pytest.mark.parametrize("holes", [0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_equation(shape, holes):
    inputs, packing = make(*shape), packed(*shape[:2], holes)
    assert_near(outcome(fused.scan, inputs, packing), equation(inputs, packing), 2e-5)


@pytest.mark.parametrize("warps", [2, 4] if INTERPRETED else [2, 4, 8, 16])
def test_any_number_of_warps(warps, monkeypatch):
    monkeypatch.setattr(fused, "launch", lambda weights, each: {"num_warps": warps})
    shape = (2, TILE + 3, 5) if INTERPRETED else (4, 500, 64)
    inputs, packing = make(*shape), packed(*shape[:2], 0.3)
    assert_near(outcome(fused.scan, inputs, packing), equation(inputs, packing), 2e-5)


def test_bfloat16_is_summed_in_float32():
    inputs, packing = make(2, TILE + 3, 5, torch.bfloat16), packed(2, TILE + 3, 0.3)
    found = outcome(fused.scan, inputs, packing)
    assert all(each.dtype == torch.bfloat16 for each in found)
    assert_near(found, equation(inputs, packing), 2e-2)


@pytest.mark.parametrize("at", [1, TILE, TILE + 2])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_or_from_a_hole(at, poison):
    steps = TILE + 6
    u, decay, weight, linear, state = make(1, steps, 6)
    start, hole = (torch.tensor([[t == k for t in range(steps)]]) for k in (at, at + 2))
    packing = Packing(start.to(DEVICE), ~hole.to(DEVICE))
    clean, clean_final = almost_linear(u, decay, weight, linear, state, packing, impl="triton")
    with torch.no_grad():
        u[:, :at], u[:, at + 2], state[:] = poison, poison, poison
    z, final = almost_linear(u, decay, weight, linear, state, packing, impl="triton")
    assert torch.equal(z[:, at:], clean[:, at:]) and torch.equal(final, clean_final)
    assert z[0, at + 2].abs().max() == 0
    du, dstate = torch.autograd.grad(z[:, at:].sum() + final.sum(), [u, state])
    assert du.isfinite().all() and du[:, :at].abs().max() == du[0, at + 2].abs().max() == 0
    assert dstate.abs().max() == 0


def test_rows_without_a_valid_step_keep_their_state():
    *inputs, state = make(2, TILE + 2, 5)
    nothing = torch.zeros(2, TILE + 2, dtype=torch.bool, device=DEVICE)
    z, final = fused.scan(*inputs, state, Packing(~nothing, nothing))
    assert z.abs().max() == 0 and torch.equal(final, state)
    du, dstate = torch.autograd.grad(final.sum(), [inputs[0], state])
    assert du.abs().max() == 0 and torch.equal(dstate, torch.ones_like(state))


def test_the_same_input_gives_the_same_bits_also_without_gradients():
    inputs, packing = make(3, TILE + 5, 16), packed(3, TILE + 5, 0.3)
    one, other = outcome(fused.scan, inputs, packing), outcome(fused.scan, inputs, packing)
    assert all(map(torch.equal, one, other))
    with torch.no_grad():
        assert torch.equal(fused.scan(*inputs, packing)[0], one[0])


def test_what_it_does_not_take_is_said():
    with pytest.raises(ValueError, match="takes up to 128 units, not 200; use 'torch'"):
        almost_linear(*make(1, 3, 200), packed(1, 3, 0), impl="triton")
