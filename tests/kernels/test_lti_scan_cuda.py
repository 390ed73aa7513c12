"""The fused LTI scan equals the equation: outputs, final state, every gradient.

On a machine without a GPU the programs run interpreted, at small sizes:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_lti_scan_cuda.py
"""

import pytest
import torch

from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.lti_scan import System, lti_scan, naive, prepare, prepared
from decision_s4.kernels.packing import Packing

pytest.importorskip("triton")
from decision_s4.kernels.lti_scan import triton as fused

INTERPRETED = interpreted()
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK = 8 if INTERPRETED else prepared.CHUNK
SHAPES = [(1, 1, 2, 5), (2, CHUNK - 1, 3, 1), (1, CHUNK, 1, 5), (3, CHUNK + 1, 2, 1)]  # B, T, H, n
SHAPES += [(2, 2 * CHUNK, 1, 5), (3, 3 * CHUNK + 5, 2, 5)]
SHAPES += [] if INTERPRETED else [(2, 8191, 3, 32), (40, 300, 64, 32), (1, 2048, 64, 32)]
low_ranks = pytest.mark.parametrize("low_rank", [False, True])


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", CHUNK)
    monkeypatch.setattr(fused, "GROUPS", 2)


def make(rows, steps, channels, half, low_rank):
    """u, state, and the fields of a stable system."""
    torch.manual_seed(steps)
    shape, kind = (channels, half), torch.complex64
    fields = [torch.polar(0.3 + 0.6 * torch.rand(shape), torch.randn(shape))]
    fields += [torch.randn(shape, dtype=kind) for _ in range(2)]
    fields += [0.1 / half * torch.randn(shape, dtype=kind) for _ in range(2 if low_rank else 0)]
    u, state = torch.randn(rows, steps, channels), torch.randn(rows, channels, half, 2)
    return [x.to(DEVICE).requires_grad_() for x in (u, state, *fields)]


def packed(rows, steps, holes=0.2):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.1, torch.rand(rows, steps) < 1 - holes
    start[0] = False
    return Packing(start.to(DEVICE), valid.to(DEVICE) if holes else None)


def there(packing):
    """The same for the exact equation, on the CPU."""
    valid = None if packing.valid is None else packing.valid.cpu()
    return Packing(packing.start.cpu(), valid)


def outcome(run, inputs, packing):
    """Outputs, final state, and the gradient of a loss on both in every input."""
    u, state, *fields = inputs
    y, final = run(u, System(*fields), state, packing)
    weights = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float64)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    trained = [x for x in inputs if x.requires_grad]
    return [y, final, *torch.autograd.grad(loss, trained, materialize_grads=True)]


def assert_near(found, inputs, packing, tolerance=2e-5):
    exact = [
        x.detach()
        .cpu()
        .to(torch.promote_types(x.dtype, torch.float64))
        .requires_grad_(x.requires_grad)
        for x in inputs
    ]
    expected = outcome(naive.scan, exact, there(packing))
    for mine, wanted in zip(found, expected, strict=True):
        assert (mine.cpu() - wanted).norm() <= tolerance * wanted.norm() + 1e-7


@low_ranks
@pytest.mark.parametrize("holes", [0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_equation(shape, holes, low_rank):
    inputs, packing = make(*shape, low_rank), packed(*shape[:2], holes)
    assert_near(outcome(fused.scan, inputs, packing), inputs, packing)


@low_ranks
@pytest.mark.parametrize("holes", [0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_prepared_it_equals_the_equation(shape, holes, low_rank):
    """Where only c is trained."""
    inputs, packing = make(*shape, low_rank), packed(*shape[:2], holes)
    given = [x.detach().requires_grad_(i in (0, 1, 4)) for i, x in enumerate(inputs)]

    def run(u, system, state, packing):
        return lti_scan(u, system, state, packing, "triton", prepare(system, CHUNK))

    assert_near(outcome(run, given, packing), given, packing)


@pytest.mark.parametrize("with_final", [True, False])
def test_a_gradient_of_one_of_its_results_alone(with_final):
    u, state, *fields = make(2, CHUNK + 3, 2, 5, True)
    packing, system = packed(2, CHUNK + 3), System(*fields)
    y, final = fused.scan(u, system, state, packing)
    (found,) = torch.autograd.grad((final if with_final else y).sin().sum(), [u])
    y, final = lti_scan(u, system, state, packing, "torch")
    (wanted,) = torch.autograd.grad((final if with_final else y).sin().sum(), [u])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", [3, CHUNK, CHUNK + 2])
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_or_from_a_hole(at, poison):
    steps = CHUNK + 6
    u, state, *fields = make(1, steps, 2, 5, True)
    start, hole = (torch.tensor([[t == x for t in range(steps)]]) for x in (at, at + 2))
    packing, system = Packing(start.to(DEVICE), ~hole.to(DEVICE)), System(*fields)
    clean, clean_final = lti_scan(u, system, state, packing, "triton")
    with torch.no_grad():
        u[:, :at], u[:, at + 2], state[:] = poison, poison, poison
    y, final = lti_scan(u, system, state, packing, "triton")
    assert torch.equal(y[:, at:], clean[:, at:]) and torch.equal(final, clean_final)
    assert y[0, at + 2].abs().max() == 0
    loss = y[:, at:].square().sum() + final.sum()
    du, dstate = torch.autograd.grad(loss, [u, state])
    assert du[:, :at].abs().max() == 0 and du.isfinite().all() and dstate.abs().max() == 0


def test_memory_left_by_others_is_not_read(monkeypatch):
    """What torch hands out as empty is full of NaN."""
    inputs, packing = make(3, 2 * CHUNK + 3, 2, 5, True), packed(3, 2 * CHUNK + 3)
    wanted = outcome(fused.scan, inputs, packing)

    def poisoned(make):
        def run(*sizes, **kind):
            x = make(*sizes, **kind)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return run

    for place, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(place, name, poisoned(getattr(place, name)))
    found = outcome(fused.scan, inputs, packing)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


def test_denormal_values_are_kept_or_zero():
    u, state, *fields = make(1, CHUNK + 1, 2, 5, True)
    y, _ = fused.scan(u * 1e-39, System(*fields), state * 1e-39, packed(1, CHUNK + 1))
    assert y.isfinite().all() and y.abs().max() < 1e-36


def test_rows_without_a_valid_step_keep_their_state():
    u, state, *fields = make(3, CHUNK + 2, 2, 5, False)
    nothing = torch.zeros(3, CHUNK + 2, dtype=torch.bool, device=DEVICE)
    y, final = fused.scan(u, System(*fields), state, Packing(~nothing, nothing))
    assert y.abs().max() == 0 and torch.equal(final, state)
    dy = torch.autograd.grad(final.sum(), [u, state, *fields], allow_unused=True)
    assert dy[0].abs().max() == 0 and torch.equal(dy[1], torch.ones_like(state))


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_offsets_beyond_32_bits(monkeypatch):
    """The last row of 2^31 numbers and more is right, to the bit where as many warps add up."""
    monkeypatch.setattr(fused, "MANY", 0)
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    rows, steps, h, half = 67, 500_000, 64, 5
    _, _, *fields = make(1, 1, h, half, True)
    system = System(*(z.detach() for z in fields))
    u, state = torch.randn(rows, steps, h, device=DEVICE), torch.zeros(rows, h, half, 2).to(DEVICE)
    with torch.no_grad():
        y, final = fused.scan(u, system, state, Packing.unbroken(rows, steps, DEVICE))
        last = fused.scan(u[-1:], system, state[-1:], Packing.unbroken(1, steps, DEVICE))
    assert torch.equal(y[-1:], last[0]) and torch.equal(final[-1:], last[1])


def test_refusals():
    u, state, *fields = make(1, 3, 1, 33, False)
    with pytest.raises(ValueError, match="takes up to 64 states, not 66"):
        lti_scan(u, System(*fields), state, packed(1, 3), "triton")
    few = System(*make(1, 3, 1, 2, False)[2:])
    with pytest.raises(ValueError, match="needs float32, not"):
        lti_scan(u.bfloat16(), few, state[..., :2, :], packed(1, 3), "triton")
    double = [x.detach().to(torch.promote_types(x.dtype, torch.float64)) for x in fields]
    with pytest.raises(ValueError, match="needs float32, not"):
        lti_scan(u.double(), System(*double), state.double(), packed(1, 3), "triton")
