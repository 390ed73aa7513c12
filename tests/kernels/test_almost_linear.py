"""The fast paths of the almost-linear recurrence equal the equation's loop, with every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.almost_linear import almost_linear, almost_linear_step
from decision_s4.kernels.almost_linear import cpu as cpu_path
from decision_s4.kernels.packing import Packing

ROWS = 4
impls = pytest.mark.parametrize("impl", ["naive", "torch", "cpu"])
fast = pytest.mark.parametrize("impl", ["torch", "cpu"])


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips what needs the C++ library where it cannot be built."""
    params = getattr(request.node, "callspec", None)
    if params and params.params.get("impl") == "cpu" and cpu_path.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")


def make(steps: int, rows: int = ROWS, units: int = 6, linear: int = 4):
    """u, A, W, L, state; all floating-point ones want gradients."""
    u, state = torch.randn(rows, steps, units), torch.randn(rows, units)
    weight = torch.randn(units, units) / (2 * units)
    inputs = u, torch.rand(units), weight, state
    u, decay, weight, state = (x.double().requires_grad_() for x in inputs)
    return u, decay, weight, linear, state


def masks(steps: int, rows: int = ROWS):
    """(start, valid) with an unbroken row, a full one and one that begins anew."""
    start, valid = torch.rand(rows, steps) < 0.05, torch.rand(rows, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    return start, valid


def outcome(impl, u, decay, weight, linear, state, packing):
    """Outputs, final state, and the gradient of a loss on both in every float input."""
    z, final = almost_linear(u, decay, weight, linear, state, packing, impl)
    weights = torch.sin(torch.arange(z.numel(), dtype=z.dtype)).view_as(z)
    loss = (z * weights).sum() + final.cos().sum()
    inputs = [u, decay, weight, state]
    return [z, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-30


@impls
def test_a_step_a_hand_can_check(impl):
    """z = (1, −2): 1/2 z + u + W (1, relu −2 = 0), W half the exchange of both: (.5, −1 + .5)."""
    decay, weight = torch.full((2,), 0.5), torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    state, u = torch.tensor([[1.0, -2.0]]), torch.zeros(1, 1, 2)
    z, final = almost_linear(u, decay, weight, 1, state, Packing.unbroken(1, 1), impl)
    assert z.tolist() == [[[0.5, -0.5]]] and final.tolist() == [[0.5, -0.5]]
    assert almost_linear_step(u[:, 0], state, decay, weight, 1).tolist() == [[0.5, -0.5]]


@fast
@pytest.mark.parametrize("steps", [1, 2, 3, 64, 257])
@pytest.mark.parametrize(("units", "linear"), [(1, 0), (6, 4), (16, 16), (37, 20), (64, 48)])
def test_fast_paths_equal_the_loop(impl, steps, units, linear):
    torch.manual_seed(steps)
    arguments = (*make(steps, units=units, linear=linear), Packing(*masks(steps)))
    assert_all_near(outcome(impl, *arguments), outcome("naive", *arguments))


@fast
def test_float32(impl):
    torch.manual_seed(1)
    packing = Packing(*masks(64))
    *parts, linear, state = make(64, units=64, linear=48)
    expected = outcome("naive", *parts, linear, state, packing)
    single = [x.detach().float().requires_grad_() for x in (*parts, state)]
    found = outcome(impl, *single[:3], linear, single[3], packing)
    assert_all_near(found, expected, 1e-5)
    assert all(x.dtype == torch.float32 for x in found)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_mix_of_starts_and_holes(data):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    arguments = (*make(steps, rows), Packing(start, valid))
    expected = outcome("naive", *arguments)
    for impl in ["torch"] + ["cpu"] * bool(cpu_path.library()):
        assert_all_near(outcome(impl, *arguments), expected)


@impls
def test_gradients_equal_finite_differences(impl):
    torch.manual_seed(2)
    u, decay, weight, linear, state = make(5, rows=2)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))

    def run(u, decay, weight, state):
        return almost_linear(u, decay, weight, linear, state, packing, impl)

    assert torch.autograd.gradcheck(run, (u, decay, weight, state), fast_mode=True)


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, poison):
    torch.manual_seed(3)
    u, decay, weight, linear, state = make(9, rows=1)
    start, valid = torch.zeros(1, 9, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    start[0, 4], valid[0, 6] = True, False
    packing = Packing(start, valid)
    clean = almost_linear(u, decay, weight, linear, state, packing, impl)
    with torch.no_grad():
        u[0, :4], u[0, 6], state[:] = poison, poison, poison
    z, final = almost_linear(u, decay, weight, linear, state, packing, impl)
    assert torch.equal(z[:, 4:], clean[0][:, 4:]) and torch.equal(final, clean[1])
    assert z[0, 6].tolist() == [0] * 6
    assert z[0, :4].isnan().any() or poison == 1e300  # and is not hidden by ReLU where it is
    (gradient,) = torch.autograd.grad(z[:, 4:].square().sum(), u)
    assert gradient[:, 4:].isfinite().all()


@pytest.mark.parametrize("impl", ["cpu"])
def test_memory_it_did_not_write_is_not_read(impl, nan_in_empty_memory):
    """What it allocates begins as NaN."""
    torch.manual_seed(4)
    arguments = (*make(33), Packing(*masks(33)))
    expected = outcome("naive", *arguments)
    with nan_in_empty_memory():
        found = outcome(impl, *arguments)
    assert_all_near(found, expected)


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    *arguments, state = make(3)
    nothing = torch.zeros(ROWS, 3, dtype=torch.bool)
    z, final = almost_linear(*arguments, state, Packing(~nothing, nothing), impl)
    assert z.abs().max() == 0
    assert torch.equal(final, state)


def test_what_does_not_fit_is_refused():
    arguments = (*make(3), Packing.unbroken(ROWS, 3))
    with pytest.raises(ValueError, match="impl 'cuda' is unknown; use naive, torch, cpu"):
        almost_linear(*arguments, impl="cuda")
    if cpu_path.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")
    z, _ = almost_linear(*arguments, impl="cpu")
    with pytest.raises(RuntimeError, match="impl 'cpu' has no second derivatives"):
        torch.autograd.grad(z.sum(), arguments[0], create_graph=True)
