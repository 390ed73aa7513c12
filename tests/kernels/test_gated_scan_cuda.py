"""The fused GRU and LSTM equal the equation: outputs, final state, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_gated_scan_cuda.py
"""

import copy

import pytest
import torch
from torch import nn

from decision_s4.kernels import choice
from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.gated_scan import gated_scan, naive
from decision_s4.kernels.packing import Packing

pytest.importorskip("triton")
from decision_s4.kernels.gated_scan import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = fused.TILE
SHAPES = [(1, 1, 5), (2, TILE - 1, 3), (1, TILE, 16), (3, TILE + 1, 17), (3, 2 * TILE + 5, 4)]
SHAPES += [] if INTERPRETED else [(5, 700, 64), (3, 300, 100), (2, 2049, 128), (300, 100, 64)]
D = 3
kinds = pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])


def make(kind, rows, steps, width, low=torch.float32):
    """x (B, T, D), a network, state (B, parts, H)."""
    torch.manual_seed(steps)
    network = kind(D, width)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=width**-0.5)
    parts = 2 if kind is nn.LSTM else 1
    x, state = torch.randn(rows, steps, D), torch.randn(rows, parts, width)
    x, state = (each.to(DEVICE, low).requires_grad_() for each in (x, state))
    return x, network.to(DEVICE, low), state


def packed(rows, steps, holes):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.1, torch.rand(rows, steps) < 1 - holes
    start[0] = False
    return Packing(start.to(DEVICE), valid.to(DEVICE) if holes else None)


def outcome(run, x, network, state, packing):
    y, final = run(x, network, state, packing)
    weights = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float64)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    ramp = torch.arange(final.numel(), device=final.device).view(final.transpose(0, -1).shape)
    loss = loss + (final.transpose(0, -1) * ramp.cos()).sum()  # a gradient in another order
    inputs = [x, state, *network.parameters()]
    return [y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def equation(x, network, state, packing):
    """The same in float64 on the CPU."""
    x, state = (each.detach().cpu().double().requires_grad_() for each in (x, state))
    valid = None if packing.valid is None else packing.valid.cpu()
    network = copy.deepcopy(network).cpu().double()
    return outcome(naive.scan, x, network, state, Packing(packing.start.cpu(), valid))


def assert_near(found, wanted, tolerance):
    for mine, exact in zip(found, wanted, strict=True):
        assert (mine.detach().cpu() - exact).norm() <= tolerance * exact.norm() + 1e-6


@kinds
@pytest.mark.parametrize("holes", [0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_equation(kind, shape, holes):
    given, packing = make(kind, *shape), packed(*shape[:2], holes)
    assert_near(outcome(fused.scan, *given, packing), equation(*given, packing), 2e-5)


@pytest.mark.parametrize("warps", [2, 4] if INTERPRETED else [2, 4, 8, 16])
@kinds
def test_any_number_of_warps(kind, warps, monkeypatch):
    monkeypatch.setattr(fused, "launch", lambda weights, each: {"num_warps": warps})
    shape = (2, TILE + 3, 5) if INTERPRETED else (4, 500, 64)
    given, packing = make(kind, *shape), packed(*shape[:2], 0.3)
    assert_near(outcome(fused.scan, *given, packing), equation(*given, packing), 2e-5)


@kinds
def test_bfloat16_is_summed_in_float32(kind):
    given, packing = make(kind, 2, TILE + 3, 5, torch.bfloat16), packed(2, TILE + 3, 0.3)
    found = outcome(fused.scan, *given, packing)
    assert all(each.dtype == torch.bfloat16 for each in found)
    assert_near(found, equation(*given, packing), 2e-2)


@kinds
@pytest.mark.parametrize("at", [1, TILE, TILE + 2])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_or_from_a_hole(kind, at, poison):
    steps = TILE + 6
    x, network, state = make(kind, 1, steps, 5)
    start, hole = (torch.tensor([[t == k for t in range(steps)]]) for k in (at, at + 2))
    packing = Packing(start.to(DEVICE), ~hole.to(DEVICE))
    clean, clean_final = gated_scan(x, network, state, packing, impl="triton")
    with torch.no_grad():
        x[:, :at], x[:, at + 2], state[:] = poison, poison, poison
    y, final = gated_scan(x, network, state, packing, impl="triton")
    assert torch.equal(y[:, at:], clean[:, at:]) and torch.equal(final, clean_final)
    assert y[0, at + 2].abs().max() == 0
    (dx,) = torch.autograd.grad(y[:, at:].sum() + final.sum(), [x])
    assert dx[:, at:].isfinite().all() and dx[0, at + 2].abs().max() == 0


@kinds
def test_rows_without_a_valid_step_keep_their_state(kind):
    x, network, state = make(kind, 2, TILE + 2, 5)
    nothing = torch.zeros(2, TILE + 2, dtype=torch.bool, device=DEVICE)
    y, final = fused.scan(x, network, state, Packing(~nothing, nothing))
    assert y.abs().max() == 0 and torch.equal(final, state)
    dx, dstate = torch.autograd.grad(final.sum(), [x, state])
    assert dx.abs().max() == 0 and torch.equal(dstate, torch.ones_like(state))


@kinds
def test_the_same_input_gives_the_same_bits(kind):
    given, packing = make(kind, 3, TILE + 5, 16), packed(3, TILE + 5, 0.3)
    one, other = outcome(fused.scan, *given, packing), outcome(fused.scan, *given, packing)
    assert all(map(torch.equal, one, other))


@kinds
def test_without_gradients_nothing_is_kept(kind):
    given, packing = make(kind, 3, TILE + 5, 16), packed(3, TILE + 5, 0.3)
    with torch.no_grad():
        y, final = fused.scan(*given, packing)
    assert torch.equal(y, outcome(fused.scan, *given, packing)[0]) and not final.requires_grad


def test_what_it_does_not_take_is_said():
    wide = make(nn.GRU, 1, 3, 200), packed(1, 3, 0)
    with pytest.raises(ValueError, match="takes a width up to 128, not 200; use 'torch'"):
        gated_scan(*wide[0], wide[1], impl="triton")


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_it_is_the_choice_on_cuda(caplog):
    choice.say.cache_clear()
    with caplog.at_level("INFO"):
        for width in (64, 200):
            gated_scan(*make(nn.GRU, 2, 9, width), packed(2, 9, 0.3))
    assert "gated_scan: 'triton' runs on cuda" in caplog.text
    assert "gated_scan: 'fused' runs on cuda: takes a width up to 128, not 200" in caplog.text
