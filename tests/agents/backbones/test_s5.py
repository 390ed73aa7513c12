"""S5 against dense float64 algebra of the continuous system that it discretises."""

import math

import pytest
import torch

from decision_s4.agents.backbones.hippo import legs
from decision_s4.agents.backbones.s5 import S5, S5Options
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, N, STEPS = 3, 8, 40


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def stirred() -> S5:
    layer = S5(D, S5Options(d_state=N, dt_min=0.05, dt_max=0.5))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def hold(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero-order hold of x' = a x + b u: exp [[a, b], [0, 0]] = [[Ā, B̄], [0, 1]]."""
    block = torch.cat([torch.cat([a, b], 1), b.new_zeros(b.shape[1], len(a) + b.shape[1])])
    exponential = torch.linalg.matrix_exp(block)
    return exponential[: len(a), : len(a)], exponential[: len(a), len(a) :]


def dense_response(layer: S5, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One row u (T, D) through both of each conjugate pair; x (N/2,) complex is carried in."""
    dt = layer.log_dt.exp()
    poles = torch.complex(-layer.log_decay.exp(), layer.frequency) * dt
    b = torch.view_as_complex(layer.b) * dt[:, None]
    c = torch.view_as_complex(layer.c)
    a, b = hold(torch.diag(torch.cat([poles, poles.conj()])), torch.cat([b, b.conj()]))
    c, x, outputs = torch.cat([c, c.conj()], 1), torch.cat([x, x.conj()]), []
    for u_t in u:
        x = a @ x + b @ (u_t + 0j)
        y = torch.nn.functional.gelu((c @ x).real + layer.d * u_t)
        outputs.append(y * torch.sigmoid(layer.out.weight @ y + layer.out.bias))
    return torch.stack(outputs)


def test_outputs_and_gradients_equal_the_dense_system():
    layer = stirred()
    u = torch.randn(1, STEPS, D, requires_grad=True)
    state = torch.randn(1, N // 2, 2, requires_grad=True)
    y, _ = layer(u, state, Packing.unbroken(1, STEPS))
    expected = dense_response(layer, u[0], torch.view_as_complex(state[0]))
    torch.testing.assert_close(y[0], expected, rtol=1e-10, atol=1e-10)

    weights, inputs = torch.randn_like(expected), [u, state, *layer.parameters()]
    found, wanted = (
        torch.autograd.grad((weights * each).sum(), inputs) for each in (y[0], expected)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_pole_a_hand_can_check():
    """Pole −1, step ln 2: Ā = 1/2 and B̄ = 1 − 1/2, so states after a 1 are 1/2, 1/4, 1/8."""
    layer = S5(1, S5Options(d_state=2))
    with torch.no_grad():
        layer.log_decay.zero_(), layer.frequency.zero_(), layer.log_dt.fill_(math.log(math.log(2)))
        layer.b.copy_(torch.tensor([[[1.0, 0.0]]]))
    state, found, constants = layer.initial_state(1), [], layer.constants()
    for u in (1.0, 0.0, 0.0):
        _, state = layer.step(torch.tensor([[u]]), state, constants)
        found.append(state.flatten().tolist())
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[0.5, 0], [0.25, 0], [0.125, 0]]))


@pytest.mark.parametrize("blocks", [1, 2])
def test_initial_poles_are_those_of_the_normal_hippo_matrix(blocks):
    """Eigenvalues of A + p pᵀ of size N / blocks, one of each conjugate pair, for each block."""
    layer = S5(D, S5Options(d_state=N, blocks=blocks))
    a, root = (torch.from_numpy(part) for part in legs(N // blocks))
    expected = torch.linalg.eigvals(a + torch.outer(root, root) / 2)
    expected = expected[expected.imag > 0].imag.sort().values
    torch.testing.assert_close(layer.frequency, expected.repeat(blocks), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(-layer.log_decay.exp(), torch.full((N // 2,), -0.5))


def test_initial_steps_differ_from_pole_to_pole_in_their_range():
    dt = S5(D, S5Options(d_state=4000, blocks=2000)).log_dt.exp()
    assert 0.001 <= dt.min() < 0.00105
    assert 0.095 < dt.max() <= 0.1
    assert dt.log10().mean().item() == pytest.approx(-2, abs=0.05)


def test_the_initial_input_matrix_is_the_published_one_in_distribution():
    """V* B' with B' real normal of variance 1 / D: E b b* = 1 / D, and E b bᵀ = 0."""
    b = torch.view_as_complex(S5(500, S5Options(d_state=N)).b)
    torch.testing.assert_close(b @ b.mH, torch.eye(N // 2) + 0j, atol=0.2, rtol=0)
    torch.testing.assert_close(b @ b.mT, torch.zeros(N // 2, N // 2) + 0j, atol=0.2, rtol=0)


def test_it_begins_without_memory_and_stable():
    layer = S5(D, S5Options())
    assert layer.c.abs().max() == 0
    x, packing = torch.randn(1, 300, D), Packing.unbroken(1, 300)
    _, state = layer(x, layer.initial_state(1), packing)
    _, later = layer(torch.zeros(1, 20_000, D), state, Packing.unbroken(1, 20_000))
    assert later.norm() < 1e-3 * state.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 3}, "d_state 3"),
        ({"d_state": 0}, "d_state 0"),
        ({"d_state": 6, "blocks": 2}, r"multiple of 2 · blocks \(4\)"),
        ({"blocks": 0}, "blocks 0"),
        ({"dt_min": 0.0}, "dt_min 0.0"),
        ({"dt_min": 0.2}, "dt_max 0.1 need"),
        ({"dt_max": math.nan}, "dt_max nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        S5(D, S5Options(**options))
