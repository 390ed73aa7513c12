"""Every operation's fast path on the CPU where arithmetic is hard, in float32.

Denormal inputs, decays of 0 to −10,000 a step, saturated gates, and rows of an odd length in two
parts against the whole.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decision_s4.kernels.delta_rule import delta_rule
from decision_s4.kernels.diagonal_scan import cpu as diagonal_cpu
from decision_s4.kernels.diagonal_scan import diagonal_scan
from decision_s4.kernels.gated_linear import cpu as linear_cpu
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.gated_scan import cpu as gated_cpu
from decision_s4.kernels.gated_scan import gated_scan
from decision_s4.kernels.lti_scan import System, lti_scan
from decision_s4.kernels.lti_scan import cpu as lti_cpu
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.selective_scan import cpu as selective_cpu
from decision_s4.kernels.selective_scan import selective_scan
from decision_s4.kernels.short_conv import short_conv
from decision_s4.kernels.ssd import ssd

LONG, STEPS, ROWS = 8191, 70, 2
Kind = torch.dtype


def _decay(gate: float, kind: Kind) -> Tensor:
    return torch.tensor(gate, dtype=kind)


def selective(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    A, D, steps = _decay(gate, kind).expand(3, 4), torch.ones(3, dtype=kind), torch.ones(3)

    def run(x: Tensor, B: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        delta = steps.to(kind).expand_as(x)
        return selective_scan(x, delta, A, B, B, D, state=state, start=packing.start, impl=impl)

    return run, [(3,), (4,)], (3, 4)


def state_space(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    def run(x: Tensor, B: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        delta = torch.ones(*x.shape[:2], 2, dtype=kind)
        return ssd(x, delta, _decay(gate, kind).expand(2), B, B, state, packing, impl)

    return run, [(2, 3), (4,)], (2, 3, 4)


def attention(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    def run(k: Tensor, v: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        gates = _decay(gate, kind).expand_as(k)
        return gated_linear(k, k, v, gates, state, packing, impl)

    return run, [(2, 4), (2, 3)], (2, 4, 3)


def delta(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    def run(k: Tensor, v: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        unit = nn.functional.normalize(k, dim=-1)
        gates = _decay(gate, kind).expand(*k.shape[:3], 1)
        return delta_rule(k, unit, 0.5 * unit, v, gates, state, packing, impl)

    return run, [(2, 4), (2, 3)], (2, 4, 3)


def diagonal(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    a = torch.polar(_decay(gate, kind).exp().expand(4), torch.arange(4.0).to(kind))

    def run(u: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        x, final = diagonal_scan(
            torch.complex(u, -u), a, torch.view_as_complex(state), packing, impl
        )
        return torch.view_as_real(x), torch.view_as_real(final)

    return run, [(4,)], (4, 2)


def invariant(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    angles = torch.arange(6.0).view(3, 2).to(kind)
    poles = torch.polar(_decay(gate, kind).exp().expand(3, 2), angles)
    b = torch.polar(torch.ones(3, 2, dtype=kind), angles)
    system = System(poles, b, b.conj())

    def run(u: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        return lti_scan(u, system, state, packing, impl)

    return run, [(3,)], (3, 2, 2)


def convolution(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    weight = torch.arange(12.0).view(3, 4).sin().to(kind)

    def run(x: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        return short_conv(x, weight, None, state, packing, impl)

    return run, [(3,)], (3, 3)


def recurrent(kind: Kind, gate: float, impl: str) -> tuple[Callable, list, tuple]:
    """`gate` in place of the input's bias: gates all but shut or open."""
    torch.manual_seed(1)
    network = nn.GRU(3, 4).to(kind)
    with torch.no_grad():
        network.bias_ih_l0.fill_(gate)

    def run(x: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        return gated_scan(x, network, state, packing, impl)

    return run, [(3,)], (1, 4)


CASES: list[Any] = [
    *(
        (make, impl)
        for make in (selective, state_space, attention, diagonal, invariant)
        for impl in ("torch", "cpu")
    ),
    (delta, "torch"),
    (convolution, "torch"),
    *((recurrent, impl) for impl in ("torch", "cpu", "fused")),
]
cases = pytest.mark.parametrize(
    ("make", "impl"), CASES, ids=[f"{make.__name__}-{impl}" for make, impl in CASES]
)


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips what needs a C++ library where it cannot be built."""
    given = request.node.callspec.params
    libraries = {
        selective: selective_cpu,
        diagonal: diagonal_cpu,
        invariant: lti_cpu,
        recurrent: gated_cpu,
    }
    library = libraries.get(given["make"], linear_cpu)
    if given["impl"] == "cpu" and library.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")


def inputs(shapes: list, state: tuple, steps: int, scale: float = 1.0) -> list[Tensor]:
    """Float32 sequences (B, T, …) and the state, of one seed."""
    torch.manual_seed(0)
    drawn = [torch.randn(ROWS, steps, *shape) for shape in shapes]
    return [scale * x for x in (*drawn, torch.randn(ROWS, *state))]


def start(steps: int) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(ROWS, steps) < 0.03


def both_ways(run: Callable, given: list[Tensor], packing: Packing) -> list[Tensor]:
    """Output, final state and the gradient of all inputs."""
    given = [x.detach().requires_grad_() for x in given]
    y, final = run(*given, packing)
    weights = torch.arange(y.numel(), dtype=torch.float64).sin().view_as(y)
    gradients = torch.autograd.grad((y * weights).sum() + final.sum(), given)
    return [y.detach(), final.detach(), *gradients]


@cases
@pytest.mark.parametrize("gate", [0.0, -5.0, -30.0, -1e4])
def test_decays_from_none_to_all(make, impl, gate):
    packing = Packing(start(STEPS))
    run, *shapes = make(torch.float32, gate, impl)
    exact, *_ = make(torch.float64, gate, "naive")
    given = inputs(*shapes, STEPS)
    wanted = both_ways(exact, [x.double() for x in given], packing)
    for mine, theirs in zip(both_ways(run, given, packing), wanted, strict=True):
        assert mine.isfinite().all()
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


@cases
def test_denormal_values_are_kept_or_zero(make, impl):
    packing = Packing(start(STEPS))
    run, *shapes = make(torch.float32, -0.1, impl)
    exact, *_ = make(torch.float64, -0.1, "naive")
    given = inputs(*shapes, STEPS, scale=1e-39)
    wanted = both_ways(exact, [x.double() for x in given], packing)
    for mine, theirs in zip(both_ways(run, given, packing), wanted, strict=True):
        assert mine.isfinite().all()
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-36


@cases
def test_a_long_odd_row_is_its_parts_one_after_another(make, impl):
    run, *shapes = make(torch.float32, -0.1, impl)
    *sequences, state = inputs(*shapes, LONG)
    starts, cut = start(LONG), 4099
    with torch.no_grad():
        y, final = run(*sequences, state, Packing(starts))
        first, middle = run(*(x[:, :cut] for x in sequences), state, Packing(starts[:, :cut]))
        second, last = run(*(x[:, cut:] for x in sequences), middle, Packing(starts[:, cut:]))
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last, final, rtol=1e-3, atol=1e-4)
