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
SHAPES = [(1, 1, 2, 2), (2, CHUNK - 1, 3, 3), (1, CHUNK, 1, 2), (3, CHUNK + 1, 2, 1)]  # B, T, H, n
SHAPES += [(2, 2 * CHUNK, 1, 4), (3, 3 * CHUNK + 5, 2, 5)]
SHAPES += [] if INTERPRETED else [(2, 8191, 3, 32), (40, 300, 64, 32), (1, 2048, 64, 8)]
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
    return [y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_near(found, inputs, packing, tolerance=2e-5):
    exact = [x.detach().cpu().to(torch.promote_types(x.dtype, torch.float64)) for x in inputs]
    expected = outcome(naive.scan, [x.requires_grad_() for x in exact], there(packing))
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
    for i in (2, 3, *range(5, len(inputs))):
        inputs[i] = inputs[i].detach()
    trained = [x for x in inputs if x.requires_grad]

    def run(u, system, state, packing):
        return lti_scan(u, system, state, packing, "triton", prepare(system, CHUNK))

    def partial(run, inputs, packing):
        u, state, *fields = inputs
        y, final = run(u, System(*fields), state, packing)
        weights = torch.sin(torch.arange(y.numel(), device=y.device, dtype=torch.float64))
        loss = (y * weights.view_as(y)).sum() + final.cos().sum()
        return [y, final, *torch.autograd.grad(loss, [inputs[0], inputs[1], inputs[4]])]

    assert len(trained) == 3
    exact = [x.detach().cpu().to(torch.promote_types(x.dtype, torch.float64)) for x in inputs]
    expected = partial(naive.scan, [x.requires_grad_() for x in exact], there(packing))
    for mine, wanted in zip(partial(run, inputs, packing), expected, strict=True):
        assert (mine.cpu() - wanted).norm() <= 2e-5 * wanted.norm() + 1e-7
