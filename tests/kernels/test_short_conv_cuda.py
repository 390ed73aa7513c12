"""The fused short convolution equals the equation: outputs, final state, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_short_conv_cuda.py
"""

import pytest
import torch

from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import naive, short_conv

pytest.importorskip("triton")
from decision_s4.kernels.short_conv import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIME = 8 if INTERPRETED else fused.TIME
SHAPES = [(1, 1, 3, 4), (3, 2, 5, 4), (2, TIME - 1, 7, 4), (1, TIME, 16, 2), (3, TIME + 1, 17, 4)]
SHAPES += [(2, 3 * TIME + 2, 20, 1), (2, 3 * TIME + 2, 20, 8)]  # B, T, D, W
SHAPES += [] if INTERPRETED else [(2, 8191, 100, 4), (40, 300, 256, 4)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(fused, "TIME", TIME)
    monkeypatch.setattr(fused, "CHANNELS", 16 if INTERPRETED else fused.CHANNELS)


def make(rows, steps, channels, taps, bias=True):
    torch.manual_seed(steps)
    shapes = (rows, steps, channels), (channels, taps), (channels,), (rows, channels, taps - 1)
    x, weight, beta, state = (torch.randn(s).to(DEVICE).requires_grad_() for s in shapes)
    return [x, weight, beta if bias else None, state]


def packed(rows, steps, holes):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.2, torch.rand(rows, steps) < 1 - holes
    start[0] = False
    return Packing(start.to(DEVICE), valid.to(DEVICE) if holes else None)


def outcome(run, inputs, packing):
    y, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float64)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    given = [x for x in inputs if x is not None]
    return [y, final, *torch.autograd.grad(loss, given, materialize_grads=True)]


def assert_near(inputs, packing, tolerance=1e-5):
    exact = [x if x is None else x.detach().cpu().double().requires_grad_() for x in inputs]
    valid = None if packing.valid is None else packing.valid.cpu()
    expected = outcome(naive.conv, exact, Packing(packing.start.cpu(), valid))
    # Of the outputs' gradients, which nearly cancel, and of the sums on the way.
    rounding = 6e-8 * inputs[0].numel() ** 0.5
    for mine, wanted in zip(outcome(fused.conv, inputs, packing), expected, strict=True):
        assert (mine.detach().cpu() - wanted).norm() <= tolerance * wanted.norm() + rounding


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("holes", [0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_equation(shape, holes, bias):
    assert_near(make(*shape, bias), packed(*shape[:2], holes))


def test_bfloat16_is_summed_in_float32():
    inputs, packing = make(2, TIME + 3, 5, 4), packed(2, TIME + 3, 0.3)
    lower = [x.detach().bfloat16().requires_grad_() for x in inputs]
    found = outcome(fused.conv, lower, packing)
    wanted = outcome(fused.conv, [x.detach().float().requires_grad_() for x in lower], packing)
    assert all(x.dtype == torch.bfloat16 for x in found)
    for mine, exact in zip(found, wanted, strict=True):
        assert (mine - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize("at", [1, TIME, TIME + 2])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_or_from_a_hole(at, poison):
    steps = TIME + 6
    x, weight, bias, state = make(1, steps, 3, 4)
    start, hole = (torch.tensor([[t == k for t in range(steps)]]) for k in (at, at + 2))
    packing = Packing(start.to(DEVICE), ~hole.to(DEVICE))
    clean, clean_final = short_conv(x, weight, bias, state, packing, impl="triton")
    with torch.no_grad():
        x[:, :at], x[:, at + 2], state[:] = poison, poison, poison
    y, final = short_conv(x, weight, bias, state, packing, impl="triton")
    assert torch.equal(y[:, at:], clean[:, at:]) and torch.equal(final, clean_final)
    assert y[0, at + 2].abs().max() == 0
    dx, dstate = torch.autograd.grad(y[:, at:].sum() + final.sum(), [x, state])
    assert dx.isfinite().all() and dx[:, :at].abs().max() == dx[0, at + 2].abs().max() == 0
    assert dstate.abs().max() == 0


def test_rows_without_a_valid_step_keep_their_state():
    x, weight, bias, state = make(2, TIME + 2, 3, 4)
    nothing = torch.zeros(2, TIME + 2, dtype=torch.bool, device=DEVICE)
    y, final = fused.conv(x, weight, bias, state, Packing(~nothing, nothing))
    assert y.abs().max() == 0 and torch.equal(final, state)
    dx, dstate = torch.autograd.grad(final.sum(), [x, state])
    assert dx.abs().max() == 0 and torch.equal(dstate, torch.ones_like(state))


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """The last row of 2^31 numbers and more is right."""
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    rows, steps, channels = 65, 131_072, 256
    x = torch.randn(rows, steps, channels, dtype=torch.bfloat16, device=DEVICE)
    _, weight, bias, _ = make(1, 1, channels, 4)
    weight, bias = weight.detach().bfloat16(), bias.detach().bfloat16()
    state = torch.zeros(rows, channels, 3, device=DEVICE, dtype=torch.bfloat16)
    y, _ = fused.conv(x, weight, bias, state, Packing.unbroken(rows, steps, DEVICE))
    alone, _ = fused.conv(x[-1:], weight, bias, state[-1:], Packing.unbroken(1, steps, DEVICE))
    assert torch.equal(y[-1:], alone)


def test_refusals():
    x, weight, bias, state = make(1, 3, 2, 9)
    with pytest.raises(ValueError, match="takes up to 8 taps, not 9"):
        short_conv(x, weight, bias, state, packed(1, 3, 0), impl="triton")
