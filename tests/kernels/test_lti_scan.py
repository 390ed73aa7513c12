"""The fast scans equal the equation's loop: outputs, final state, every gradient."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels.lti_scan import System, chunked, cpu, lti_scan, lti_step, naive, prepare
from decision_s4.kernels.packing import Packing

CHANNELS, HALF, ROWS = 3, 4, 4
needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler and ninja")
COMPILED = pytest.param("cpu", marks=needs_compiler)
impls = pytest.mark.parametrize("impl", ["naive", "torch", COMPILED])
fast = pytest.mark.parametrize("impl", ["torch", COMPILED])
low_ranks = pytest.mark.parametrize("low_rank", [False, True])


def make_system(low_rank: bool, channels: int = CHANNELS, half: int = HALF) -> System:
    shape, double = (channels, half), torch.float64
    poles = torch.polar(
        0.5 + 0.5 * torch.rand(shape, dtype=double), torch.randn(shape, dtype=double)
    )
    fields = [poles, *(torch.randn(shape, dtype=torch.complex128) for _ in range(2))]
    if low_rank:
        fields += [0.05 * torch.randn(shape, dtype=torch.complex128) for _ in range(2)]
    return System(*[z.requires_grad_() for z in fields])


def make_input(steps: int, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """u (B, T, H) and a state carried in (B, H, n, 2)."""
    u = torch.randn(rows, steps, CHANNELS, dtype=torch.float64, requires_grad=True)
    return u, torch.randn(rows, CHANNELS, HALF, 2, dtype=torch.float64, requires_grad=True)


def outcome(run, u, system, state, packing) -> list[torch.Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every float input."""
    y, final = run(u, system, state, packing)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    inputs = [u, state, *(z for z in system if z is not None)]
    return [y, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(
    found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-10
) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@fast
@low_ranks
@pytest.mark.parametrize("steps", [1, 2, 3, 15, 16, 17, 63, 64, 65, 257])
def test_it_equals_the_loop(low_rank, steps, impl):
    torch.manual_seed(steps)
    system, (u, state) = make_system(low_rank), make_input(steps)
    start, valid = torch.rand(ROWS, steps) < 0.05, torch.rand(ROWS, steps) < 0.8
    start[0], valid[1], valid[2] = False, True, False
    start[3, 0] = True
    arguments, run = (
        (u, system, state, Packing(start, valid)),
        functools.partial(lti_scan, impl=impl),
    )
    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@needs_compiler
@low_ranks
@pytest.mark.parametrize(("channels", "half"), [(1, 1), (8, 3), (9, 4), (16, 5), (17, 2), (40, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_of_any_number_in_vectors_of_any_width(channels, half, low_rank, dtype):
    torch.manual_seed(channels)
    system = make_system(low_rank, channels, half)
    system = System._make(
        z if z is None else z.detach().to(dtype.to_complex()).requires_grad_() for z in system
    )
    u = torch.randn(3, 37, channels, dtype=dtype, requires_grad=True)
    state = torch.randn(3, channels, half, 2, dtype=dtype, requires_grad=True)
    arguments = u, system, state, Packing(torch.rand(3, 37) < 0.1, torch.rand(3, 37) < 0.8)
    found = outcome(functools.partial(lti_scan, impl="cpu"), *arguments)
    assert all(each.real.dtype == dtype for each in found)
    expected = outcome(naive.scan, *arguments)
    if dtype == torch.float64:
        assert_all_near(found, expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@needs_compiler
@low_ranks
@pytest.mark.parametrize("trained", [["c"], [], ["a"], ["b"], ["a", "b", "c"]])
def test_gradients_of_some_are_those_among_all(low_rank, trained):
    torch.manual_seed(8)
    system, (u, state) = make_system(low_rank), make_input(40)
    packing = Packing(torch.rand(ROWS, 40) < 0.1)
    some = system._replace(
        **{
            name: z.detach()
            for name, z in system._asdict().items()
            if z is not None and name not in trained
        }
    )

    def gradients(of: System) -> list[torch.Tensor]:
        y, final = lti_scan(u, of, state, packing, impl="cpu")
        inputs = [u, state, *(getattr(of, name) for name in trained)]
        return list(torch.autograd.grad(y.square().sum() + final.sum(), inputs))

    for a, b in zip(gradients(some), gradients(system), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@needs_compiler
@low_ranks
def test_threads_change_no_bit(low_rank):
    torch.manual_seed(7)
    u = torch.randn(3, 200, 40, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, 40, HALF, 2, dtype=torch.float64, requires_grad=True)
    arguments = u, make_system(low_rank, 40), state, Packing(torch.rand(3, 200) < 0.02)
    run = functools.partial(lti_scan, impl="cpu")
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(outcome(run, *arguments))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_the_library_cannot_do_is_refused():
    system, (u, state) = make_system(True), make_input(3, rows=1)
    packing = Packing.unbroken(1, 3)
    if cpu.library() is not None:
        y, _ = lti_scan(u, system, state, packing, impl="cpu")
        with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
            torch.autograd.grad(y.sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match="do not go together"):
            lti_scan(u, system, state[:, :, 1:], packing, impl="cpu")
        with pytest.raises(RuntimeError, match="do not go together"):
            lti_scan(u, system, state, Packing.unbroken(1, 2), impl="cpu")
    with pytest.raises(ValueError, match="impl 'cpu' needs float32 or float64 on the CPU"):
        lti_scan(u.bfloat16(), system, state, packing, impl="cpu")


@needs_compiler
@low_ranks
def test_float32_over_a_long_row_is_no_further_from_float64_than_chunks(low_rank):
    torch.manual_seed(9)
    system, (u, state) = make_system(low_rank), make_input(3000, rows=1)
    system = system._replace(a=(system.a / system.a.abs() * 0.999).detach().requires_grad_())
    packing = Packing(torch.rand(1, 3000) < 0.002)
    expected = outcome(functools.partial(lti_scan, impl="cpu"), u, system, state, packing)
    single = System._make(
        z if z is None else z.detach().to(torch.complex64).requires_grad_() for z in system
    )
    u, state = (x.detach().float().requires_grad_() for x in (u, state))
    ours, chunks = (
        outcome(functools.partial(lti_scan, impl=impl), u, single, state, packing)
        for impl in ("cpu", "torch")
    )
    for a, b, exact in zip(ours, chunks, expected, strict=True):
        assert (a - exact).norm() <= 2 * (b - exact).norm() + 1e-6 * exact.norm()


@settings(deadline=None, max_examples=40)
@given(st.data(), st.booleans(), st.sampled_from([1, 2, 4, 8, None]))
def test_any_mix_of_starts_and_holes(data, low_rank, chunk):
    torch.manual_seed(0)
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 11))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    system, (u, state) = make_system(low_rank), make_input(steps, rows)
    arguments = (u, system, state, Packing(start, valid))

    def run(*each):
        return chunked.scan(*each, chunk=chunk) if chunk else lti_scan(*each)

    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@low_ranks
def test_long_chunks_equal_the_loop(low_rank):
    """Those that CUDA takes."""
    torch.manual_seed(0)
    system, (u, state) = make_system(low_rank), make_input(300, rows=2)
    arguments = (u, system, state, Packing(torch.rand(2, 300) < 0.01))

    def run(*each):
        return chunked.scan(*each, chunk=chunked.LONG_CHUNK)

    assert_all_near(outcome(run, *arguments), outcome(naive.scan, *arguments))


@low_ranks
def test_the_loop_equals_its_dense_matrix(low_rank):
    """x_t = Ā^t x_0 + Σ Ā^(t−s) b u_s over both of each conjugate pair, without the recurrence."""
    torch.manual_seed(1)
    system, (u, state) = make_system(low_rank), make_input(6, rows=1)
    y, final = lti_scan(u, system, state, Packing.unbroken(1, 6), impl="naive")

    def both(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, z.conj()], dim=-1)

    for h in range(CHANNELS):
        a = torch.diag(both(system.a[h]))
        if low_rank:
            a = a - torch.outer(both(system.w[h]), both(system.v[h]))
        powers = [torch.linalg.matrix_power(a, k) for k in range(7)]
        x_0 = both(torch.view_as_complex(state[0, h]))
        for t in range(6):
            driven = [powers[t - s] @ both(system.b[h]) * u[0, s, h] for s in range(t + 1)]
            x = powers[t + 1] @ x_0 + sum(driven)
            torch.testing.assert_close(both(system.c[h]) @ x, y[0, t, h] + 0j)
        torch.testing.assert_close(x[:HALF], torch.view_as_complex(final[0, h]))


@impls
@low_ranks
def test_gradients_equal_finite_differences(impl, low_rank):
    torch.manual_seed(2)
    system, (u, state) = make_system(low_rank), make_input(5, rows=2)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))

    def run(u, state, *fields):
        return lti_scan(u, System(*fields), state, packing, impl=impl)

    fields = [z for z in system if z is not None]
    assert torch.autograd.gradcheck(run, (u, state, *fields), fast_mode=True)


@impls
def test_a_system_a_hand_can_check(impl):
    """a = 1/2, b = 1, c = 1/2, so y_t = sum of u_s / 2^(t − s): 1, 1/2, 1/4; the reset forgets."""
    one = torch.ones(1, 1, dtype=torch.complex128)
    u = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)[..., None]
    start = torch.tensor([[True, False, False, True]])
    state = torch.full((1, 1, 1, 2), 9.0, dtype=torch.float64)
    y, final = lti_scan(u, System(one / 2, one, one / 2), state, Packing(start), impl=impl)
    assert y.flatten().tolist() == [1, 0.5, 0.25, 0]
    assert final.flatten().tolist() == [0, 0]


@impls
@low_ranks
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(impl, low_rank, poison):
    torch.manual_seed(3)
    system, (u, state) = make_system(low_rank), make_input(9, rows=1)
    start, valid = (torch.zeros(1, 9, dtype=torch.bool) for _ in range(2))
    start[0, 4], valid[:] = True, True
    valid[0, 6] = False
    clean = lti_scan(u, system, state, Packing(start, valid), impl=impl)
    with torch.no_grad():
        u[0, :4], u[0, 6], state[:] = poison, poison, poison
    y, final = lti_scan(u, system, state, Packing(start, valid), impl=impl)
    assert torch.equal(y[:, 4:], clean[0][:, 4:])
    assert torch.equal(final, clean[1])
    assert y[0, 6].tolist() == [0] * CHANNELS
    of_second = torch.autograd.grad(y[:, 4:].square().sum(), u)[0]
    assert of_second[:, 4:].isfinite().all() and of_second[:, :4].abs().max() == 0


@impls
def test_a_row_without_a_valid_step_keeps_its_state(impl):
    torch.manual_seed(4)
    system, (u, state) = make_system(True), make_input(3)
    nothing = torch.zeros(ROWS, 3, dtype=torch.bool)
    y, final = lti_scan(u, system, state, Packing(~nothing, nothing), impl=impl)
    assert y.abs().max() == 0
    assert torch.equal(final, state)


def test_a_step_neither_writes_nor_shares_its_state():
    torch.manual_seed(5)
    system, (u, state) = make_system(True), make_input(1)
    before = state.clone()
    _, after = lti_step(u[:, 0], system, state)
    assert torch.equal(state, before)
    assert after.data_ptr() != state.data_ptr()


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        lti_scan(None, None, None, None, impl="cuda")


@low_ranks
@pytest.mark.parametrize("length", [1, 2, 8, 32])
def test_what_is_prepared_is_what_a_chunk_does(low_rank, length):
    """Rows c Ā^i and c Ā^i b of any c, states Ā^i b, and the powers of Ā by squaring."""
    torch.manual_seed(6)
    system = make_system(low_rank)
    ahead, powers, rows, later = found = prepare(system, length)
    _, size, inner, outer = found.shape
    c = torch.view_as_real(system.c).flatten(1)[..., None]
    given = torch.bmm(rows, c).squeeze(2)
    first, kernel = given.split([inner * size, length], dim=1)
    first = first.view(CHANNELS, inner, size).transpose(1, 2)
    read = torch.bmm(later, first).view(CHANNELS, outer, size, inner)
    state = torch.view_as_real(system.b)[None]
    silence = torch.zeros(1, CHANNELS, dtype=torch.float64)
    for i in range(length):
        torch.testing.assert_close(state.flatten(2)[0], ahead[..., i])
        own = 2 * (system.c * torch.view_as_complex(state[0].contiguous())).real.sum(-1)
        torch.testing.assert_close(kernel[:, i], own)
        wanted, after = lti_step(silence, system, state)
        row = read[:, i // inner, :, i % inner]
        start = torch.view_as_real(system.b).flatten(1)
        torch.testing.assert_close((row * start).sum(1), wanted[0])
        state = after
    torch.testing.assert_close(powers[-1], torch.linalg.matrix_power(powers[0], length))
