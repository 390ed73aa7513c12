"""What gated_linear, delta_rule and ssd promise alike, in every way each can be computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import SCANS, Scan, assert_all_near, outcome

from decision_s4.kernels.packing import Packing

NEEDS = "needs a C++ compiler and ninja"


def ways(*impls: str) -> pytest.MarkDecorator:
    """Every scan in each of these ways."""
    pairs = [
        pytest.param(
            scan,
            impl,
            id=f"{scan.name}-{impl}",
            marks=pytest.mark.skipif(
                impl == "cpu" and scan.module("cpu").library() is None, reason=NEEDS
            ),
        )
        for scan in SCANS
        for impl in impls
    ]
    return pytest.mark.parametrize(("scan", "impl"), pairs)


every_scan = pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.name)
HELD_START, HOLE = 4, 6  # steps of a row of nine


def broken_row() -> Packing:
    """Nine steps with a start and a hole."""
    start, hole = (torch.tensor([[t == at for t in range(9)]]) for at in (HELD_START, HOLE))
    return Packing(start, ~hole)


@ways("cpu")
def test_threads_change_no_bit(scan: Scan, impl):
    torch.manual_seed(2)
    arguments = scan.make_input(3, 200), Packing.unbroken(3, 200)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(outcome(scan.run(impl), *arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@ways("cpu")
def test_every_element_is_written(scan: Scan, impl, nan_in_empty_memory):
    """Holes and rows without a valid step too, of outputs and of gradients."""
    torch.manual_seed(3)
    valid = torch.rand(3, 37) < 0.5
    valid[1] = False
    arguments = scan.make_input(3, 37), Packing(torch.rand(3, 37) < 0.1, valid)
    with nan_in_empty_memory():
        found = outcome(scan.run(impl), *arguments)
    assert_all_near(found, outcome(scan.loop, *arguments))


@ways("cpu")
def test_the_library_has_no_second_derivatives(scan: Scan, impl):
    inputs = scan.make_input(1, 3)
    o, _ = scan.run(impl)(*inputs, Packing.unbroken(1, 3))
    with pytest.raises(RuntimeError, match="'cpu' has no second derivatives"):
        torch.autograd.grad(o.sum(), inputs[0], create_graph=True)


@every_scan
def test_the_library_refuses_half_precision(scan: Scan):
    half = [x.detach().bfloat16() for x in scan.make_input(1, 3)]
    message = f"{scan.name}: impl 'cpu' needs float32 or float64 on the CPU"
    with pytest.raises(ValueError, match=message):
        scan.run("cpu")(*half, Packing.unbroken(1, 3))


@every_scan
def test_unknown_implementation_is_refused(scan: Scan):
    with pytest.raises(ValueError, match="'cuda' is unknown"):
        scan.run("cuda")(*scan.make_input(1, 3), Packing.unbroken(1, 3))


def masks(data, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Starts and valid steps, (B, T) each."""
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, longest))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    start, valid = (torch.tensor(data.draw(mask)).view(rows, steps) for _ in range(2))
    return start, valid


@every_scan
@settings(deadline=None, max_examples=40)
@given(data=st.data(), chunk=st.sampled_from([1, 2, 4, 8]))
def test_any_mix_of_starts_and_holes_in_chunks(scan: Scan, data, chunk):
    torch.manual_seed(0)
    start, valid = masks(data, 11)
    arguments = scan.make_input(*start.shape), Packing(start, valid)

    def in_chunks(*each):
        return scan.module("chunked").scan(*each, chunk=chunk)

    assert_all_near(outcome(in_chunks, *arguments), outcome(scan.loop, *arguments))


@ways("cpu")
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_mix_of_starts_and_holes_in_the_library(scan: Scan, impl, data):
    torch.manual_seed(0)
    start, valid = masks(data, 35)  # it keeps a state in 16 steps
    arguments = scan.make_input(*start.shape), Packing(start, valid)
    assert_all_near(outcome(scan.run(impl), *arguments), outcome(scan.loop, *arguments))


@ways("naive", "torch", "cpu")
def test_gradients_equal_finite_differences(scan: Scan, impl):
    torch.manual_seed(3)
    packing = Packing(torch.tensor([[False, False, True, False, False], [True] + 4 * [False]]))
    assert torch.autograd.gradcheck(
        lambda *inputs: scan.run(impl)(*inputs, packing), scan.make_input(2, 5), fast_mode=True
    )


@ways("torch")
def test_second_derivatives_equal_finite_differences(scan: Scan, impl):
    torch.manual_seed(4)
    packing = Packing(torch.tensor([[False, True, False]]))
    assert torch.autograd.gradgradcheck(
        lambda *inputs: scan.run(impl)(*inputs, packing), scan.make_input(1, 3), fast_mode=True
    )


@ways("naive", "torch", "cpu")
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_neither_other_episodes_nor_holes_leak(scan: Scan, impl, poison):
    torch.manual_seed(5)
    inputs, packing, run = scan.make_input(1, 9), broken_row(), scan.run(impl)
    clean, clean_final = run(*inputs, packing)
    with torch.no_grad():
        inputs[-1][:] = poison
        for i in scan.in_time:
            inputs[i][0, :HELD_START], inputs[i][0, HOLE] = poison, poison
    o, final = run(*inputs, packing)
    assert torch.equal(o[:, HELD_START:], clean[:, HELD_START:])
    assert torch.equal(final, clean_final)
    assert o[0, HOLE].abs().max() == 0


@ways("torch", "cpu")
@pytest.mark.parametrize("poison", [float("nan"), 1e300])
def test_no_gradient_comes_from_holes_or_crosses_a_start(scan: Scan, impl, poison):
    torch.manual_seed(6)
    inputs = scan.make_input(1, 9)
    with torch.no_grad():
        for i in scan.in_time:
            inputs[i][0, HOLE] = poison
    o, final = scan.run(impl)(*inputs, broken_row())
    gradients = torch.autograd.grad(o[:, HELD_START:].sum() + final.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    for gradient in (gradients[i] for i in scan.in_time):
        assert gradient[0, :HELD_START].abs().max() == gradient[0, HOLE].abs().max() == 0
        assert gradient[0, HELD_START + 1].abs().max() > 0
    assert gradients[-1].abs().max() == 0


@ways("naive", "torch", "cpu")
def test_a_row_without_a_valid_step_keeps_its_state(scan: Scan, impl):
    torch.manual_seed(8)
    *inputs, state = scan.make_input(2, 3)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    o, final = scan.run(impl)(*inputs, state, Packing(~nothing, nothing))
    assert o.abs().max() == 0
    assert torch.equal(final, state)


@ways("torch", "cpu")
def test_a_row_of_no_steps_keeps_its_state(scan: Scan, impl):
    inputs = scan.make_input(2, 0)
    o, final = scan.run(impl)(*inputs, Packing.unbroken(2, 0))
    assert o.shape[:2] == (2, 0) and torch.equal(final, inputs[-1])
    gradients = torch.autograd.grad(final.sum(), inputs, materialize_grads=True)
    assert torch.equal(gradients[-1], torch.ones_like(final))


@every_scan
def test_a_step_neither_writes_nor_shares_its_state(scan: Scan):
    torch.manual_seed(9)
    *inputs, state = scan.make_input(2, 1)
    at_once = [x[:, 0] if i in scan.in_time else x for i, x in enumerate(inputs)]
    before = state.detach().clone()
    _, after = scan.step(*at_once, state)
    assert torch.equal(state, before)
    assert after.data_ptr() != state.data_ptr()
