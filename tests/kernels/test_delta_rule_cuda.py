"""The fused delta_rule equals the equation: every configuration, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_delta_rule_cuda.py
"""

import functools

import pytest
import torch
from torch.nn import functional as F

from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.delta_rule import delta_rule, naive
from decision_s4.kernels.packing import Packing

pytest.importorskip("triton")
from decision_s4.kernels.delta_rule import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = [(2, 1, 2, 3, 5), (1, 31, 1, 16, 2), (2, 33, 2, 5, 17)]  # rows, steps, heads, K, V
LARGE = [(2, 8191, 2, 64, 64), (3, 65, 3, 40, 100), (2, 257, 2, 128, 128), (64, 100, 4, 16, 16)]
WIDTHS = [4] if INTERPRETED else [64, 128]
run = functools.partial(delta_rule, impl="triton")
per_key_or_head = pytest.mark.parametrize("per_key", [True, False])


def make(rows, steps, heads, key, value, lowest=-1.0, per_key=True, low=torch.float32):
    """q, k and v; w near β k with β in (0, 2); log gates in [lowest, 0]; state."""
    torch.manual_seed(steps)
    q, k, aside = torch.randn(3, rows, steps, heads, key)
    k, v = F.normalize(k, dim=-1), torch.randn(rows, steps, heads, value)
    w = 2 * torch.rand(rows, steps, heads, 1) * F.normalize(k + 0.3 * key**-0.5 * aside, dim=-1)
    gate = lowest * torch.rand(rows, steps, heads, key if per_key else 1)
    q, k, w, v = (x.to(low) for x in (q * key**-0.5, k, w, v))
    state = torch.randn(rows, heads, key, value)
    return [x.to(DEVICE).requires_grad_() for x in (q, k, w, v, gate, state)]


def packed(rows, steps, starts=0.05, holes=0.1):
    torch.manual_seed(rows)
    start, valid = (torch.rand(rows, steps) < chance for chance in (starts, 1 - holes))
    return Packing(start.to(DEVICE), valid.to(DEVICE))


def exactly(inputs, packing):
    """The same values in float64, on the CPU."""
    inputs = [x.detach().cpu().double().requires_grad_() for x in inputs]
    valid = None if packing.valid is None else packing.valid.cpu()
    return inputs, Packing(packing.start.cpu(), valid)


def outcome(scan, inputs, packing):
    """Outputs, final state, and the gradient of a loss on both in every input."""
    o, final = scan(*inputs, packing)
    weights = torch.sin(torch.arange(o.numel(), device=o.device, dtype=torch.float64))
    loss = (o * weights.view_as(o)).sum() + final.double().cos().sum()
    return [o, final, *torch.autograd.grad(loss, inputs)]


def assert_near(found, expected, tolerance):
    errors = []
    for a, b in zip(found, expected, strict=True):
        errors.append(((a.detach().cpu().double() - b).norm() / (b.norm() + 1e-20)).item())
    assert max(errors) <= tolerance, " ".join(f"{error:.1e}" for error in errors)


def assert_equals_the_equation(inputs, packing, tolerance=2e-5, config=None):
    scan = functools.partial(fused.scan, config=config)
    expected = outcome(naive.scan, *exactly(inputs, packing))
    assert_near(outcome(scan, inputs, packing), expected, tolerance)


@per_key_or_head
@pytest.mark.parametrize("shape", SMALL if INTERPRETED else SMALL + LARGE, ids=str)
def test_it_equals_the_equation(shape, per_key):
    assert_equals_the_equation(make(*shape, per_key=per_key), packed(*shape[:2]))


@per_key_or_head
@pytest.mark.parametrize("lowest", [0.0, -5.0, -30.0, -1e4])
def test_any_gate(lowest, per_key):
    assert_equals_the_equation(make(2, 70, 1, 3, 4, lowest, per_key), packed(2, 70))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", fused.CONFIGS)
@per_key_or_head
def test_every_configuration(config, per_key, low, width):
    if INTERPRETED and low == torch.bfloat16:
        pytest.skip("the interpreter multiplies no bfloat16")
    shape = (1, 67, 1, 4, 3) if INTERPRETED else (3, 300, 4, width, width)
    inputs = make(*shape, per_key=per_key, low=low)
    tolerance = 2e-5 if low == torch.float32 else 3e-2
    assert_equals_the_equation(inputs, packed(*shape[:2]), tolerance, config)


@per_key_or_head
def test_a_head_in_several_tiles(per_key):
    config = fused.Config(16, 4, 16, *[fused.Launch(4, 16)] * 2)
    assert_equals_the_equation(
        make(1, 20, 2, 40, 24, per_key=per_key), packed(1, 20), config=config
    )


@pytest.mark.parametrize("steps", [15, 16, 17] if INTERPRETED else [31, 32, 33, 63, 64, 65])
def test_rows_about_as_long_as_a_chunk(steps):
    config = fused.WIDE._replace(chunk=16) if INTERPRETED else None
    packing = Packing.unbroken(2, steps, torch.device(DEVICE))
    assert_equals_the_equation(make(2, steps, 1, 3, 4), packing, config=config)


def test_a_key_that_comes_again_and_again():
    """A is large: all keys are alike, and beta is near 2; chunks round more than steps would."""
    q, k, _, v, gate, state = make(2, 70, 1, 4, 4, 0.0)
    k = F.normalize(k[:, :1] + 0.01 * k, dim=-1).detach().requires_grad_()
    w = (1.99 * k).detach().requires_grad_()
    assert_equals_the_equation([q, k, w, v, gate, state], packed(2, 70, 0.0), 2e-4)


def test_where_every_step_is_a_start():
    packing = Packing(torch.ones(2, 20, dtype=torch.bool, device=DEVICE))
    assert_equals_the_equation(make(2, 20, 1, 3, 4), packing)


def test_inputs_that_are_not_contiguous():
    inputs, packing = make(2, 20, 2, 3, 4), packed(2, 20)
    with torch.no_grad():
        strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    strided = [x.requires_grad_() for x in strided]
    assert not any(x.is_contiguous() for x in strided)
    wanted, found = outcome(run, inputs, packing), outcome(run, strided, packing)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_denormal_values_are_kept_or_zero():
    q, k, w, v, gate, state = make(1, 40, 1, 3, 4)
    o, _ = run(q, k, w, v * 1e-39, gate, state * 1e-39, packed(1, 40))
    assert o.isfinite().all() and o.abs().max() < 1e-37


@per_key_or_head
@pytest.mark.parametrize("poison", [-2.0, float("nan"), 1e30])
@pytest.mark.parametrize("at", [3, 32, 64, 66])
def test_neither_other_episodes_nor_holes_leak(poison, at, per_key):
    """Not a bit of them; next to what is not tame, episodes are summed apart, in another order."""
    inputs = make(1, 70, 1, 3, 4, per_key=per_key)
    start, hole = (torch.tensor([[t == x for t in range(70)]], device=DEVICE) for x in (at, at + 2))
    packing = Packing(start, ~hole)
    clean, clean_final = run(*inputs, packing)
    wanted = torch.autograd.grad(clean[:, at:].sum() + clean_final.sum(), inputs)
    dirty = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        dirty[-1][:] = poison
        for x in dirty[:-1]:
            x[0, :at], x[0, at + 2] = poison, poison
    o, final = run(*dirty, packing)
    near = {"rtol": 0, "atol": 0} if poison == -2.0 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(o[:, at:], clean[:, at:], **near)
    torch.testing.assert_close(final, clean_final, **near)
    assert o[0, at + 2].abs().max() == 0
    gradients = torch.autograd.grad(o[:, at:].sum() + final.sum(), dirty)
    for gradient, expected in zip(gradients[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(gradient[:, at:], expected[:, at:], rtol=1e-4, atol=1e-5)
        assert gradient[0, at + 2].abs().max() == 0


@per_key_or_head
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
@pytest.mark.parametrize("at", [3, 20, 66])
def test_gradients_of_other_episodes_do_not_leak(poison, at, per_key):
    """Though the outputs were tame, and their episodes not kept apart."""
    inputs = make(1, 70, 1, 3, 4, per_key=per_key)
    start = torch.tensor([[t == at for t in range(70)]], device=DEVICE)
    o, _ = run(*inputs, Packing(start))
    do = torch.ones_like(o)
    wanted = torch.autograd.grad(o, inputs, do, retain_graph=True)
    do[:, :at] = poison
    found = torch.autograd.grad(o, inputs, do)
    for mine, clean in zip(found[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(mine[:, at:], clean[:, at:], rtol=1e-4, atol=1e-5)


@per_key_or_head
def test_an_episode_that_explodes_does_so_alone(per_key):
    """Though all its inputs are tame."""
    inputs = make(1, 70, 1, 3, 4, 0.0, per_key=per_key)
    start = torch.tensor([[t == 40 for t in range(70)]], device=DEVICE)
    clean = outcome(run, inputs, Packing(start))
    with torch.no_grad():
        inputs[1][:, :40] *= 1e4
        inputs[2][:, :40] *= 1e4
    found = outcome(run, inputs, Packing(start))
    assert not found[0][:, 30:40].isfinite().all()
    for mine, wanted in zip([found[0], *found[2:-1]], [clean[0], *clean[2:-1]], strict=True):
        torch.testing.assert_close(mine[:, 40:], wanted[:, 40:], rtol=1e-4, atol=1e-5)


def test_the_same_input_gives_the_same_bits():
    inputs, packing = make(2, 70, 2, 3, 4), packed(2, 70)
    one, other = (outcome(run, inputs, packing) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_refusals():
    inputs, packing = make(1, 3, 1, 3, 4), packed(1, 3)
    with pytest.raises(ValueError, match="needs bfloat16 or float32"):
        run(*(x.double() for x in inputs), packing)
    with pytest.raises(ValueError, match="takes K up to 128, not 129"):
        run(*make(1, 3, 1, 129, 4), packing)


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_memory_grows_as_the_inputs():
    """What the backward pass keeps, beside the inputs: states before chunks and a few of them."""
    inputs = make(4, 4096, 4, 64, 64, per_key=False, low=torch.bfloat16)
    packing = Packing.unbroken(4, 4096, torch.device(DEVICE))
    assert packing.marks.is_cuda
    before = torch.cuda.memory_allocated()
    o, final = run(*inputs, packing)
    kept = torch.cuda.memory_allocated() - before
    chunks = 4096 // fused.WIDE.chunk
    states = 4 * chunks * inputs[-1].numel()
    assert kept <= states + 8 * inputs[0].numel() * inputs[0].element_size()
    assert o.grad_fn is not None and final.grad_fn is not None


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    """The last row of 2^31 elements and more is right, its gradients too."""
    rows, steps = 33, 524_288
    if torch.cuda.mem_get_info()[0] < 70e9:
        pytest.skip("needs 70 GB of GPU memory")
    v = torch.randn(1, steps, 1, 128, device=DEVICE, dtype=torch.bfloat16)
    k = F.normalize(torch.randn(1, steps, 1, 16, device=DEVICE), dim=-1).bfloat16()
    one = [k, k.clone(), k.clone(), v, torch.full((1, steps, 1, 1), -0.1, device=DEVICE)]
    many = [torch.cat([x.flip(1).expand(rows - 1, *x.shape[1:]), x]) for x in one]
    assert many[3].numel() > 2**31
    for a, b in zip(last_row(many), last_row(one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def last_row(inputs):
    """o, and the gradient of its sum in every input."""
    rows, steps = inputs[0].shape[:2]
    inputs = [x.requires_grad_() for x in inputs]
    state = torch.zeros(rows, 1, 16, 128, device=DEVICE)
    o, _ = run(*inputs, state, Packing.unbroken(rows, steps, torch.device(DEVICE)))
    found = torch.autograd.grad(o, inputs, torch.ones_like(o))
    return [x[-1:].clone() for x in (o.detach(), *found)]
