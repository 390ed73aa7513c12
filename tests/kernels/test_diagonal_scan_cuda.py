"""The fused diagonal scan equals the equation: outputs, final state, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_diagonal_scan_cuda.py
"""

import pytest
import torch

from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.diagonal_scan import diagonal_scan, naive
from decision_s4.kernels.packing import Packing

pytest.importorskip("triton")
from decision_s4.kernels.diagonal_scan import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIME = 8 if INTERPRETED else fused.TIME
SHAPES = [(2, 1, 3), (2, TIME - 1, 17), (1, TIME, 5), (2, TIME + 1, 2), (3, 2 * TIME + 3, 18)]
SHAPES += [] if INTERPRETED else [(2, 8191, 64), (64, 1000, 32), (1, 300, 100)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(fused, "TIME", TIME)


def make(rows, steps, poles):
    """u, poles within the unit circle, state."""
    torch.manual_seed(steps)
    kind = torch.complex64
    u, state = torch.randn(rows, steps, poles, dtype=kind), torch.randn(rows, poles, dtype=kind)
    a = torch.polar(0.5 + 0.5 * torch.rand(poles), torch.randn(poles))
    return [x.to(DEVICE).requires_grad_() for x in (u, a, state)]


def packed(rows, steps, holes=0.2):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.1, torch.rand(rows, steps) < 1 - holes
    return Packing(start.to(DEVICE), valid.to(DEVICE) if holes else None)


def outcome(run, inputs, packing):
    """x, final state, and the gradient of a loss on both in every input."""
    x, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(x.numel(), device=x.device, dtype=torch.float64)).view_as(x)
    loss = (x.real * weights).sum() + (x.imag * weights.cos()).sum()
    loss = loss + final.real.cos().sum() + final.imag.sin().sum()
    return [x, final, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("holes", [0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_equation(shape, holes):
    inputs, packing = make(*shape), packed(*shape[:2], holes)
    exact = [x.detach().cpu().to(torch.complex128).requires_grad_() for x in inputs]
    valid = None if packing.valid is None else packing.valid.cpu()
    expected = outcome(naive.scan, exact, Packing(packing.start.cpu(), valid))
    for found, wanted in zip(outcome(fused.scan, inputs, packing), expected, strict=True):
        assert (found.cpu() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("at", [3, TIME, TIME + 2])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_or_from_a_hole(at, poison):
    steps = TIME + 6
    u, a, state = make(1, steps, 3)
    start, hole = (torch.tensor([[t == x for t in range(steps)]]) for x in (at, at + 2))
    packing = Packing(start.to(DEVICE), ~hole.to(DEVICE))
    clean, clean_final = diagonal_scan(u, a, state, packing, impl="triton")
    with torch.no_grad():
        u[:, :at], u[:, at + 2], state[:] = poison, poison, poison
    x, final = diagonal_scan(u, a, state, packing, impl="triton")
    assert torch.equal(x[:, at:], clean[:, at:]) and torch.equal(final, clean_final)
    assert x[0, at + 2].abs().max() == 0
    loss = x[:, at:].abs().square().sum() + final.real.sum()
    du, dstate = torch.autograd.grad(loss, [u, state])
    assert du[:, :at].abs().max() == 0 and du.isfinite().all()
    assert dstate.abs().max() == 0


def test_denormal_values_are_kept_or_zero():
    u, a, state = make(1, TIME + 1, 3)
    x, _ = fused.scan(u * 1e-39, a, state * 1e-39, packed(1, TIME + 1))
    assert x.abs().isfinite().all() and x.abs().max() < 1e-37


def test_poles_on_and_at_the_centre_of_the_unit_circle():
    inputs, packing = make(2, TIME + 3, 3), packed(2, TIME + 3)
    with torch.no_grad():
        inputs[1][:] = torch.tensor([0, 1, -1j], dtype=torch.complex64)
    exact = [x.detach().cpu().to(torch.complex128).requires_grad_() for x in inputs]
    there = Packing(packing.start.cpu(), packing.valid.cpu())
    expected = outcome(naive.scan, exact, there)
    for found, wanted in zip(outcome(fused.scan, inputs, packing), expected, strict=True):
        assert (found.cpu() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """The last row of 2^31 numbers and more is right."""
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs 30 GB of GPU memory")
    rows, steps, poles = 65, 262_144, 64
    u = torch.randn(rows, steps, poles, dtype=torch.complex64, device=DEVICE)
    a = torch.polar(torch.full((poles,), 0.9), torch.arange(poles) / 9).to(DEVICE)
    state = torch.zeros(rows, poles, dtype=torch.complex64, device=DEVICE)
    with torch.no_grad():
        x, _ = fused.scan(u, a, state, Packing.unbroken(rows, steps, DEVICE))
        alone, _ = fused.scan(u[-1:], a, state[-1:], Packing.unbroken(1, steps, DEVICE))
    assert torch.equal(x[-1:], alone)


def test_refusals():
    u, a, state = make(1, 3, 2)
    with pytest.raises(ValueError, match="needs complex64, not"):
        diagonal_scan(u.real, a.real, state.real, packed(1, 3), impl="triton")
