"""The fused kernels equal the equation, in every gradient.

On a machine without a GPU they run at small sizes: CUDA C++ compiled for the CPU (emulate.h), and
Triton's programs interpreted:
TRITON_INTERPRET=1 python -m pytest tests/kernels/test_selective_scan_cuda.py
"""

import importlib.util
import logging

import pytest
import torch

from decision_s4.kernels import choice
from decision_s4.kernels.choice import interpreted
from decision_s4.kernels.selective_scan import cuda, selective_scan

CUDA = torch.cuda.is_available()
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or interpreted())
DEVICE = "cuda" if CUDA else "cpu"
on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
TIME = 16
SMALL = [(2, 1, 3, 2), (2, TIME - 1, 5, 1), (1, TIME, 32, 3), (2, TIME + 1, 33, 4)]
LARGE = [(3, 257, 70, 16), (2, 1000, 128, 16), (1, 65, 8, 5), (2, 100, 40, 32)]
LOW = ("u", "delta", "B", "C", "z")


@pytest.fixture(params=["cuda", "triton"])
def impl(request, monkeypatch, emulated_kernel):
    if request.param == "cuda" and not CUDA:
        monkeypatch.setattr(cuda, "KERNEL", emulated_kernel)
    if request.param == "triton" and not TRITON:
        pytest.skip("needs Triton, and a CUDA device or TRITON_INTERPRET=1")
    return request.param


def make(rows=2, steps=TIME + 3, channels=5, states=3, starts=0.1, low=torch.float32):
    """Every argument but `impl`; u, delta, B, C, z in `low`, the others in float32."""
    torch.manual_seed(steps)
    wide, narrow = (rows, steps, channels), (rows, steps, states)
    shapes = {"u": wide, "delta": wide, "B": narrow, "C": narrow, "z": wide, "D": (channels,)}
    shapes |= {"delta_bias": (channels,), "state": (rows, channels, states)}
    arguments = {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}
    arguments |= {name: arguments[name].to(low) for name in LOW}
    arguments["A"] = -4 * torch.rand(channels, states, device=DEVICE)
    arguments = {name: x.requires_grad_() for name, x in arguments.items()}
    start = torch.rand(rows, steps, device=DEVICE) < starts
    return arguments | {"delta_softplus": True, "start": start}


def exactly(arguments):
    """The same values in float64, on the CPU."""

    def convert(x):
        if not torch.is_tensor(x):
            return x
        x = x.detach().cpu()
        return x.double().requires_grad_() if x.is_floating_point() else x

    return {name: convert(x) for name, x in arguments.items()}


def outcome(arguments, impl):
    """By name: y, final state, and the gradients of a loss on both."""
    y, final = selective_scan(**arguments, impl=impl)
    weights = torch.sin(torch.arange(y.numel(), device=y.device)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    inputs = {name: arguments[name] for name in GRADIENTS if arguments[name] is not None}
    found = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "final": final, **dict(zip(inputs, found, strict=True))}


def assert_near(found, expected, tolerance):
    for name, wanted in expected.items():
        error = (found[name].detach().cpu().double() - wanted).norm() / (wanted.norm() + 1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


def assert_equals_the_equation(impl, arguments, tolerance=2e-5):
    assert_near(outcome(arguments, impl), outcome(exactly(arguments), "naive"), tolerance)


@pytest.mark.parametrize("shape", SMALL + LARGE if CUDA else SMALL)
def test_it_equals_the_equation(impl, shape):
    assert_equals_the_equation(impl, make(*shape))


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cut", [True, False])
def test_every_type_with_and_without_starts(impl, low, cut):
    if not CUDA and impl == "triton" and low == torch.bfloat16:
        pytest.skip("one type will do where nothing is compiled")
    shape = (2, 150, 300, 16) if CUDA else (1, TIME + 3, 19, 2)
    arguments = make(*shape, low=low) | ({} if cut else {"start": None})
    assert_equals_the_equation(impl, arguments, 2e-5 if low == torch.float32 else 1e-2)


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "state", "start"])
def test_what_may_be_absent(impl, absent):
    assert_equals_the_equation(impl, make() | {absent: None})


def test_without_softplus(impl):
    arguments = make() | {"delta_softplus": False, "delta_bias": None}
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    assert_equals_the_equation(impl, arguments)


def test_small_time_steps_keep_their_precision(impl):
    """softplus(−12) = 6e-6: 1 + e would lose it."""
    arguments = make()
    arguments["delta_bias"] = torch.full_like(arguments["delta_bias"], -12).requires_grad_()
    assert_equals_the_equation(impl, arguments)


@pytest.mark.parametrize("poison", [float("nan"), 1e30])
@pytest.mark.parametrize("at", [3, TIME, TIME + 2])
def test_nothing_leaks_across_a_start(impl, poison, at):
    arguments = make(rows=1, steps=TIME + 6, starts=0)
    arguments["start"][0, at] = True
    clean, final = selective_scan(**arguments, impl=impl)
    dirty, late = (
        {name: x.detach().clone() if torch.is_tensor(x) else x for name, x in arguments.items()}
        for _ in range(2)
    )
    for name in LOW:
        dirty[name][:, :at] = poison
    dirty["state"][:] = poison
    y, after = selective_scan(**dirty, impl=impl)
    assert torch.equal(y[:, at:], clean[:, at:])
    assert torch.equal(after, final)
    for name in ("u", "B", "C"):
        late[name][:, at:] = poison
    wanted = {name: late[name].requires_grad_() for name in ("u", "B", "C", "delta", "state")}
    y, _ = selective_scan(**late, impl=impl)
    *before, dstate = torch.autograd.grad(y[:, :at].sum() + y.sum(), list(wanted.values()))
    assert all(x[:, :at].isfinite().all() for x in before) and dstate.isfinite().all()


def test_the_same_input_gives_the_same_bits(impl):
    arguments = make()
    one, other = outcome(arguments, impl), outcome(arguments, impl)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_strided_inputs(impl):
    arguments = make()
    strided = dict(arguments)
    for name in (*LOW, "start", "state"):
        strided[name] = arguments[name].transpose(0, 1).contiguous().transpose(0, 1)
    one, other = outcome(arguments, impl), outcome(strided, impl)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_inputs_that_start_anywhere(impl):
    """A contiguous view need not start where 16 bytes may be read at once."""
    arguments = make(1, TIME + 3, 6, 16, low=torch.bfloat16)
    moved = dict(arguments)
    for name in (*LOW, "state", "A", "D", "delta_bias"):
        x = arguments[name].detach()
        moved[name] = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x).requires_grad_()
    one, other = outcome(arguments, impl), outcome(moved, impl)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_refusals():
    if TRITON:
        with pytest.raises(ValueError, match="needs bfloat16 or float32, not float64"):
            wide = {**make(), "D": None, "state": make()["state"].double()}
            selective_scan(**wide, impl="triton")
        with pytest.raises(ValueError, match="takes N up to 256, not 257"):
            selective_scan(**make(states=257), impl="triton")
    expected = "takes N up to 64, not 65" if CUDA else "needs tensors on CUDA, not cpu"
    with pytest.raises(ValueError, match=f"impl 'cuda' {expected}"):
        selective_scan(**make(states=65), impl="cuda")


def test_many_states(impl):
    """As many as make each way to spread them over lanes."""
    for states in (8, 17, 33):
        assert_equals_the_equation(impl, make(1, TIME + 1, 3, states))


@pytest.mark.parametrize("rate", [0.0, -5.0, -30.0, -1e4])
def test_decays_from_none_to_all(impl, rate):
    arguments = make()
    arguments["A"] = torch.full_like(arguments["A"], rate).requires_grad_()
    assert_equals_the_equation(impl, arguments)


def test_denormal_inputs_give_finite_outputs(impl):
    arguments = make(starts=0) | {"state": None, "z": None, "D": None}
    arguments["u"] = (arguments["u"] * 1e-39).detach().requires_grad_()
    y, _ = selective_scan(**arguments, impl=impl)
    du, dC = torch.autograd.grad(y.sum(), [arguments["u"], arguments["C"]])
    assert y.abs().max() < 1e-36 and du.isfinite().all() and dC.abs().max() < 1e-36


@on_cuda
def test_offsets_beyond_32_bits(impl):
    """The last of rows that hold 2.7 thousand million elements, as if it were alone."""
    shape = 40, 1024, 65_536
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB of free memory")
    u = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    B = torch.randn(*shape[:2], 2, device=DEVICE, dtype=torch.bfloat16)
    A = -torch.rand(shape[2], 2, device=DEVICE)
    outcomes = []
    for rows in (slice(None), slice(39, 40)):
        x, b = u[rows].detach().requires_grad_(), B[rows].detach().requires_grad_()
        y, final = selective_scan(x, x, A, b, b, delta_softplus=True, impl=impl)
        outcomes.append([z[-1] for z in (y, final, *torch.autograd.grad(y, [x, b], y))])
        del x, b, y, final
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


@on_cuda
def test_it_is_the_choice_on_cuda(caplog):
    choice.say.cache_clear()
    with caplog.at_level(logging.INFO):
        found, _ = selective_scan(**make())
    chosen = "cuda" if cuda.PROVEN else "triton"
    assert f"'{chosen}' runs on cuda" in caplog.text
    assert torch.equal(found, selective_scan(**make(), impl=chosen)[0])


@on_cuda
@pytest.mark.parametrize("rows", [8, 32])
def test_mamba_ssm_agrees(impl, rows):
    """An implementation by others, without starts."""
    peer = pytest.importorskip("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    arguments = make(rows, 500, 256, 16, low=torch.bfloat16) | {"start": None, "state": None}
    moved = {name: arguments[name].transpose(1, 2).contiguous() for name in LOW}
    still = {name: arguments[name] for name in ("A", "D", "delta_bias")}
    y = peer(**moved, **still, delta_softplus=True).transpose(1, 2)
    found, _ = selective_scan(**arguments, impl=impl)
    assert_near({"y": found}, {"y": y.detach().cpu().double()}, 1e-2)
