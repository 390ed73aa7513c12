"""S4 and S4D against dense float64 algebra of the continuous system that they discretise."""

import math

import numpy as np
import pytest
import torch

from decision_s4.agents.backbones.hippo import legs
from decision_s4.agents.backbones.s4 import S4, S4D, S4DOptions, S4Options
from decision_s4.envs.errors import UserError
from decision_s4.kernels.lti_scan import System, lti_scan, lti_step
from decision_s4.kernels.packing import Packing

N, STEPS = 8, 40


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def complex_of(pairs: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(pairs)


def both(z: torch.Tensor) -> torch.Tensor:
    """Both of each conjugate pair."""
    return torch.cat([z, z.conj()], dim=-1)


def bilinear(a: torch.Tensor, b: torch.Tensor, dt: torch.Tensor | float):
    """Ā = (I − dt/2 A)⁻¹ (I + dt/2 A), B̄ = (I − dt/2 A)⁻¹ dt B."""
    one = torch.eye(len(a), dtype=a.dtype)
    solved = torch.linalg.solve(one - dt / 2 * a, torch.cat([one + dt / 2 * a, dt * b[:, None]], 1))
    return solved[:, :-1], solved[:, -1]


def hold(a: torch.Tensor, b: torch.Tensor, dt: torch.Tensor | float):
    """Zero-order hold: exp(dt [[A, B], [0, 0]]) = [[Ā, B̄], [0, 1]]."""
    block = torch.cat([torch.cat([a, b[:, None]], 1), torch.zeros(1, len(a) + 1, dtype=a.dtype)])
    exponential = torch.linalg.matrix_exp(dt * block)
    return exponential[:-1, :-1], exponential[:-1, -1]


def dense_response(layer: S4 | S4D, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y (B, T, D) of the equation, channel by channel; x (B, D, N/2) complex is carried in."""
    outputs = []
    for h, dt in enumerate(layer.log_dt.exp()):
        poles = torch.diag(both(torch.complex(-layer.log_decay[h].exp(), layer.frequency[h])))
        b, c = both(complex_of(layer.b[h])), both(complex_of(layer.c[h]))
        if isinstance(layer, S4):
            p = both(complex_of(layer.p[h]))
            a, b = bilinear(poles - torch.outer(p, p.conj()), b, dt)
        else:
            a, b = hold(poles, b, dt)
        state, y = both(x[:, h]), []
        for u_t in u[..., h].unbind(1):
            state = state @ a.T + u_t[:, None] * b
            y.append((state @ c).real)
        outputs.append(torch.stack(y, 1))
    return torch.stack(outputs, -1)


def stirred(kind: type, **options) -> S4 | S4D:
    options = kind.Options(d_state=N, dt_min=0.05, dt_max=0.5, **options)
    layer = kind(3, options).requires_grad_(True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("kind", [S4, S4D])
def test_outputs_and_gradients_equal_the_dense_system(kind):
    layer = stirred(kind)
    u = torch.randn(2, STEPS, 3, requires_grad=True)
    state = torch.randn(2, 3, N // 2, 2, requires_grad=True)
    y, _ = lti_scan(u, layer.discretise(), state, Packing.unbroken(2, STEPS))
    expected = dense_response(layer, u, complex_of(state))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)

    weights = torch.randn_like(y)
    trained = [getattr(layer, name) for name in {*layer.recurrence_parameters, "c"}]
    found, wanted = (
        torch.autograd.grad((weights * each).sum(), [u, state, *trained]) for each in (y, expected)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def legs_states(u: torch.Tensor, dt: float) -> torch.Tensor:
    """The N coefficients (T, N) that S4 holds, read out by C = the rows of the eigenbasis."""
    layer = S4(N, S4Options(d_state=N, dt_min=dt, dt_max=dt))
    a, _ = legs(N)
    p = np.sqrt(np.arange(N) + 0.5)
    _, vectors = np.linalg.eigh(-1j * (a + np.outer(p, p) + 0.5 * np.eye(N)))
    system = layer.discretise()._replace(c=torch.from_numpy(vectors[:, N // 2 :].copy()))
    y, _ = lti_scan(
        u[None, :, None].expand(1, -1, N),
        system,
        layer.initial_state(1),
        Packing.unbroken(1, len(u)),
    )
    return y[0]


def cauchy_kernel(layer: S4, h: int, steps: int) -> torch.Tensor:
    """(T,) of channel h by the S4 repository's algorithm: its generating function at the roots of
    unity, Cauchy products and Woodbury's identity, inverted by FFT (arXiv 2111.00396, algorithm 1).
    """
    dt = layer.log_dt[h].exp()
    poles = both(torch.complex(-layer.log_decay[h].exp(), layer.frequency[h]))
    b, c, p = (both(complex_of(part[h])) for part in (layer.b, layer.c, layer.p))
    a, _ = bilinear(torch.diag(poles) - torch.outer(p, p.conj()), b, dt)
    c = c - c @ torch.linalg.matrix_power(a, steps)
    z = torch.exp(-2j * math.pi * torch.arange(steps) / steps)
    resolvent = 1 / ((2 / dt * (1 - z) / (1 + z))[:, None] - poles)

    def cauchy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return resolvent @ (left * right)

    low_rank = cauchy(c, p) * cauchy(p.conj(), b) / (1 + cauchy(p.conj(), p))
    return torch.fft.ifft(2 / (1 + z) * (cauchy(c, b) - low_rank)).real


def vandermonde_kernel(layer: S4D, steps: int) -> torch.Tensor:
    """(D, T) as the S4 repository's s4d.py has it, its input vector of ones inside C."""
    dt = layer.log_dt.exp()[:, None]
    A = torch.complex(-layer.log_decay.exp(), layer.frequency)
    dtA, C = A * dt, complex_of(layer.c) * complex_of(layer.b)
    K = dtA[..., None] * torch.arange(steps)
    return 2 * torch.einsum("hn,hnl->hl", C * (torch.exp(dtA) - 1) / A, torch.exp(K)).real


@torch.no_grad()
def test_kernels_are_those_of_the_s4_repository():
    layer, steps = stirred(S4), STEPS - 1  # odd: −1 is no root of unity
    expected = torch.stack([cauchy_kernel(layer, h, steps) for h in range(3)], 1)
    torch.testing.assert_close(layer.kernel(steps), expected, rtol=1e-10, atol=1e-10)
    layer = stirred(S4D)
    expected = vandermonde_kernel(layer, STEPS).T
    torch.testing.assert_close(layer.kernel(STEPS), expected, rtol=1e-10, atol=1e-10)


def test_a_new_s4_is_the_bilinear_hippo_matrix():
    u, dt = torch.randn(STEPS), 0.1
    a, b = bilinear(*(torch.from_numpy(part) for part in legs(N)), dt)
    x, expected = torch.zeros(N), []
    for u_t in u:
        x = a @ x + b * u_t
        expected.append(x)
    torch.testing.assert_close(legs_states(u, dt), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_a_new_s4_remembers_a_constant_as_its_first_coefficient():
    found = legs_states(torch.full((2000,), 2.5), dt=0.05)[-1]
    torch.testing.assert_close(found, torch.tensor([2.5] + [0.0] * (N - 1)), rtol=0, atol=1e-9)


def test_s4d_by_hand():
    """Pole −1, step ln 2: Ā = 1/2 and B̄ = 1 − 1/2, so y = 2 c x is 1/2, 1/4, 1/8 after a 1."""
    layer = S4D(1, S4DOptions(d_state=2, init="lin"))
    with torch.no_grad():
        layer.log_decay.zero_(), layer.frequency.zero_(), layer.log_dt.fill_(math.log(math.log(2)))
        layer.b.copy_(torch.tensor([1.0, 0.0])), layer.c.copy_(torch.tensor([0.5, 0.0]))
    state, found = layer.initial_state(1), []
    for u in (1.0, 0.0, 0.0):
        y, state = lti_step(torch.tensor([[u]]), layer.discretise(), state)
        found.append(y.item())
    assert found == pytest.approx([0.5, 0.25, 0.125])


def test_s4d_holds_its_input_where_a_pole_times_the_step_is_tiny():
    """(e^z − 1) / z loses every digit at z = 1e-16 unless it goes by expm1; B̄ is dt there."""
    layer = S4D(1, S4DOptions(d_state=2, init="lin", dt_min=1e-16, dt_max=1e-16))
    system: System = layer.discretise()
    assert system.b.real.item() == pytest.approx(1e-16)


@pytest.mark.parametrize(
    ("init", "frequencies"),
    [
        ("lin", [0, math.pi, 2 * math.pi]),
        ("inv", [6 / math.pi * 5, 6 / math.pi, 6 / math.pi / 5]),
    ],
)
def test_initial_poles_of_s4d(init, frequencies):
    layer = S4D(2, S4DOptions(d_state=6, init=init))
    torch.testing.assert_close(layer.poles().real, torch.full((2, 3), -0.5))
    torch.testing.assert_close(layer.poles().imag, torch.tensor([frequencies] * 2))


@pytest.mark.parametrize("kind", [S4, S4D])
def test_it_begins_without_memory_and_stable(kind):
    layer = kind(16, kind.Options())
    assert layer.c.abs().max() == 0
    assert (layer.log_dt.exp() >= 0.001).all()
    assert (layer.log_dt.exp() <= 0.1).all()
    x = torch.randn(1, 300, 16)
    _, state = layer(x, layer.initial_state(1), Packing.unbroken(1, 300))
    assert state.abs().max() > 0
    _, later = layer(torch.zeros(1, 20_000, 16), state, Packing.unbroken(1, 20_000))
    assert later.norm() < 1e-3 * state.norm()


def test_train_ssm_false_freezes_the_recurrence_alone():
    layer = S4(4, S4Options(d_state=4, train_ssm=False))
    frozen = {name for name, p in layer.named_parameters() if not p.requires_grad}
    assert frozen == {"log_dt", "log_decay", "frequency", "b", "p"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 3}, "d_state 3"),
        ({"d_state": 0}, "d_state 0"),
        ({"dt_min": 0.0}, "dt_min 0.0"),
        ({"dt_min": 0.2}, "dt_max 0.1 need"),
        ({"dt_max": math.inf}, "dt_max inf"),
        ({"dt_max": math.nan}, "dt_max nan"),
        ({"init": "line"}, "init 'line' is unknown; did you mean 'lin'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        S4D(4, S4DOptions(**options))
