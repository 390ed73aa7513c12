"""The fused gated_linear and ssd equal the equation: every configuration, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_gated_linear_cuda.py
"""

import pytest
import torch

from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.gated_linear import gated_linear, naive
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import ssd
from decision_s4.kernels.ssd.naive import scan as ssd_loop

pytest.importorskip("triton")
from decision_s4.kernels.gated_linear import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = [(2, 1, 2, 3, 5), (1, 31, 1, 16, 2), (2, 33, 2, 5, 17)]  # rows, steps, heads, K, V
CONFIGS = [(True, config) for config in fused.PER_KEY]
CONFIGS += [(False, config) for config in fused.PER_HEAD]
LARGE = [(2, 8191, 2, 64, 64), (3, 65, 3, 40, 100), (2, 257, 2, 128, 128), (64, 100, 4, 16, 16)]


def make(rows, steps, heads, key, value, lowest=-1.0, per_key=True, low=torch.float32):
    """q, k, v, log gates in [lowest, 0], state."""
    torch.manual_seed(steps)
    shapes = [(rows, steps, heads, width) for width in (key, key, value, key if per_key else 1)]
    q, k, v, gate = (torch.randn(shape, device=DEVICE) for shape in shapes)
    q, k, v = (x.to(low) for x in (q * key**-0.5, k, v))
    gate, state = lowest * torch.rand_like(gate), torch.randn(rows, heads, key, value)
    return [x.to(DEVICE).requires_grad_() for x in (q, k, v, gate, state)]


def packed(rows, steps, starts=0.05, holes=0.1):
    torch.manual_seed(rows)
    start, valid = (torch.rand(rows, steps) < chance for chance in (starts, 1 - holes))
    return Packing(start.to(DEVICE), valid.to(DEVICE))


def exactly(inputs, packing):
    """The same values in float64, on the CPU."""
    inputs = [x.detach().cpu().double().requires_grad_() for x in inputs]
    valid = None if packing.valid is None else packing.valid.cpu()
    return inputs, Packing(packing.start.cpu(), valid)


def outcome(run, inputs, packing):
    """Outputs, final state, and the gradient of a loss on both in every input."""
    o, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(o.numel(), device=o.device, dtype=torch.float64))
    loss = (o * weights.view_as(o)).sum() + final.double().cos().sum()
    return [o, final, *torch.autograd.grad(loss, inputs)]


def assert_near(found, expected, tolerance):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.detach().cpu().double() - b).norm() / (b.norm() + 1e-20)
        assert error <= tolerance, f"{i}: {error:.1e}"


def assert_equals_the_equation(inputs, packing, tolerance=2e-5, config=None):
    def run(*each):
        return fused.scan(*each, config=config)

    expected = outcome(naive.scan, *exactly(inputs, packing))
    assert_near(outcome(run, inputs, packing), expected, tolerance)


@pytest.mark.parametrize("per_key", [True, False])
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE)
def test_it_equals_the_equation(shape, per_key):
    assert_equals_the_equation(make(*shape, per_key=per_key), packed(*shape[:2]))


@pytest.mark.parametrize("per_key", [True, False])
@pytest.mark.parametrize("lowest", [0.0, -2.5, -5.0, -30.0, -1e4])  # at -2.5 some sums are LOWEST
def test_any_gate(lowest, per_key):
    assert_equals_the_equation(make(2, 70, 1, 3, 4, lowest, per_key), packed(2, 70))


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_key, config", CONFIGS, ids=str)
def test_every_configuration(config, per_key, low):
    if INTERPRETED and low == torch.bfloat16:
        pytest.skip("the interpreter multiplies no bfloat16")
    shape = (1, 67, 1, 4, 3) if INTERPRETED else (3, 300, 4, 64, 64)
    inputs = make(*shape, per_key=per_key, low=low)
    tolerance = 2e-5 if low == torch.float32 else 1e-2
    assert_equals_the_equation(inputs, packed(*shape[:2]), tolerance, config)


def test_where_every_step_is_a_start():
    packing = Packing(torch.ones(2, 20, dtype=torch.bool, device=DEVICE))
    assert_equals_the_equation(make(2, 20, 1, 3, 4), packing)


def test_denormal_values_are_kept_or_zero():
    q, k, v, gate, state = make(1, 40, 1, 3, 4)
    o, _ = fused.scan(q, k * 1e-39, v, gate, state * 1e-39, packed(1, 40))
    assert o.isfinite().all() and o.abs().max() < 1e-37


@pytest.mark.parametrize("per_key", [True, False])
@pytest.mark.parametrize("poison", [-2.0, float("nan"), 1e30])
@pytest.mark.parametrize("at", [3, 32, 64, 66])
def test_neither_other_episodes_nor_holes_leak(poison, at, per_key):
    """Not a bit of them; next to what is not tame, episodes are summed apart, in another order."""
    inputs = make(1, 70, 1, 3, 4, per_key=per_key)
    start, hole = (torch.tensor([[t == x for t in range(70)]], device=DEVICE) for x in (at, at + 2))
    packing = Packing(start, ~hole)
    clean, clean_final = gated_linear(*inputs, packing, impl="triton")
    dirty = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        dirty[-1][:] = poison
        for x in dirty[:-1]:
            x[0, :at], x[0, at + 2] = poison, poison
    o, final = gated_linear(*dirty, packing, impl="triton")
    near = {"rtol": 0, "atol": 0} if poison == -2.0 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(o[:, at:], clean[:, at:], **near)
    assert torch.equal(final, clean_final)
    assert o[0, at + 2].abs().max() == 0
    gradients = torch.autograd.grad(o[:, at:].sum() + final.sum(), dirty)
    for gradient in gradients[:-1]:
        assert gradient[0, at:].isfinite().all() and gradient[0, at + 2].abs().max() == 0


@pytest.mark.parametrize("per_key", [True, False])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
@pytest.mark.parametrize("at", [3, 20, 66])
def test_gradients_of_other_episodes_do_not_leak(poison, at, per_key):
    """Though the outputs were tame, and their episodes not kept apart."""
    inputs = make(1, 70, 1, 3, 4, per_key=per_key)
    start = torch.tensor([[t == at for t in range(70)]], device=DEVICE)
    o, _ = gated_linear(*inputs, Packing(start), impl="triton")
    do = torch.ones_like(o)
    wanted = torch.autograd.grad(o, inputs, do, retain_graph=True)
    do[:, :at] = poison
    found = torch.autograd.grad(o, inputs, do)
    for mine, clean in zip(found[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(mine[:, at:], clean[:, at:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_ssd_equals_the_equation(strength):
    """q and k shared by the heads."""
    rows, steps, heads, width, size = (2, 40, 3, 2, 4) if INTERPRETED else (2, 300, 4, 64, 64)
    torch.manual_seed(0)
    x, delta = torch.randn(rows, steps, heads, width), strength * torch.rand(rows, steps, heads)
    A, (B, C) = -torch.rand(heads), torch.randn(2, rows, steps, size)
    inputs = x, delta, A, B, C, torch.randn(rows, heads, width, size)
    inputs = [each.to(DEVICE).requires_grad_() for each in inputs]
    packing = packed(rows, steps)

    def run(*each):
        return ssd(*each, impl="triton")

    expected = outcome(ssd_loop, *exactly(inputs, packing))
    assert_near(outcome(run, inputs, packing), expected, 2e-5)


def test_the_same_input_gives_the_same_bits():
    inputs, packing = make(2, 70, 2, 3, 4), packed(2, 70)
    one, other = (outcome(fused.scan, inputs, packing) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_refusals():
    inputs, packing = make(1, 3, 1, 3, 4), packed(1, 3)
    with pytest.raises(ValueError, match="needs bfloat16 or float32"):
        gated_linear(*(x.double() for x in inputs), packing, impl="triton")
    with pytest.raises(ValueError, match="takes K up to 128, not 129"):
        gated_linear(*make(1, 3, 1, 129, 4), packing, impl="triton")


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """The last row of 2^31 elements and more is right."""
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    rows, steps = 257, 65_536
    q, k, v = (torch.randn(rows, steps, 1, 128, device=DEVICE).bfloat16() for _ in range(3))
    gate = torch.full((rows, steps, 1, 1), -0.1, device=DEVICE)
    state = torch.zeros(rows, 1, 128, 128, device=DEVICE)
    with torch.no_grad():
        o, _ = fused.scan(q, k, v, gate, state, Packing.unbroken(rows, steps, DEVICE))
        last = [x[-1:] for x in (q, k, v, gate, state)]
        alone, _ = fused.scan(*last, Packing.unbroken(1, steps, DEVICE))
    assert torch.equal(o[-1:], alone)
