"""The fast paths of selective_scan equal the equation's loop: outputs, final state, all gradients.

Shapes: B rows, T steps, D channels, N states a channel.
"""

import logging
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_s4.kernels import choice, extension, selective_scan, selective_scan_step
from decision_s4.kernels.selective_scan import cpu as cpu_path

GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
impls = pytest.mark.parametrize("impl", ["naive", "torch", "cpu"])
fast = pytest.mark.parametrize("impl", ["torch", "cpu"])


@pytest.fixture(autouse=True)
def compiled(request):
    """Skips what needs the C++ library where it cannot be built."""
    params = getattr(request.node, "callspec", None)
    if params and params.params.get("impl") == "cpu" and cpu_path.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")


def make(rows=3, steps=7, channels=5, states=4, dtype=torch.float64, starts=0.15):
    """Every argument but `impl`, all floating-point ones wanting gradients."""
    torch.manual_seed(steps)
    wide, narrow = (rows, steps, channels), (rows, steps, states)
    shapes = {"u": wide, "delta": wide, "B": narrow, "C": narrow, "D": (channels,), "z": wide}
    shapes |= {"delta_bias": (channels,), "state": (rows, channels, states)}
    arguments = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    arguments["A"] = -4 * torch.rand(channels, states, dtype=dtype)
    arguments = {name: x.requires_grad_() for name, x in arguments.items()}
    start = torch.rand(rows, steps) < starts
    return arguments | {"delta_softplus": True, "start": start}


def outcome(arguments, impl):
    """y, final state, and the gradients of a loss on both in every floating-point argument."""
    y, final = selective_scan(**arguments, impl=impl)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    inputs = [arguments[name] for name in GRADIENTS if arguments.get(name) is not None]
    return [y, final, *torch.autograd.grad(loss, inputs)]


def assert_all_near(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= tolerance * b.norm() + 1e-30


@impls
def test_a_scan_a_hand_can_check(impl):
    """exp(Δ A) = 1/2 with Δ = 1: h = u + h / 2, y = 2 h + 3 u; the third step starts anew."""
    one = torch.ones(1, 4, 1, dtype=torch.float64)
    u = torch.tensor([1.0, 0, 4, 2], dtype=torch.float64).view(1, 4, 1)
    A = torch.full((1, 1), -math.log(2), dtype=torch.float64)
    D = torch.tensor([3.0], dtype=torch.float64)
    start = torch.tensor([[False, False, True, False]])
    state = torch.tensor([[[2.0]]], dtype=torch.float64)
    y, final = selective_scan(u, one, A, one, 2 * one, D, state=state, start=start, impl=impl)
    expected = torch.tensor([2 * 2 + 3 * 1.0, 2 * 1 + 0, 2 * 4 + 3 * 4, 2 * 4 + 3 * 2])
    torch.testing.assert_close(y.flatten(), expected.double(), rtol=1e-15, atol=1e-15)
    assert final.item() == pytest.approx(4, rel=1e-15)


def test_the_loop_equals_the_closed_form():
    """h_t = Σ_s exp(A Σ_{s<r≤t} Δ_r) Δ_s B_s u_s, for one channel."""
    a = make(rows=1, steps=6, channels=1, starts=0)
    y, _ = selective_scan(**{**a, "state": None}, impl="naive")
    delta = torch.log(1 + torch.exp(a["delta"] + a["delta_bias"]))[0, :, 0]
    for t in range(6):
        h = sum(
            torch.exp(a["A"][0] * delta[s + 1 : t + 1].sum())
            * delta[s]
            * a["B"][0, s]
            * a["u"][0, s]
            for s in range(t + 1)
        )
        gate = a["z"][0, t, 0] / (1 + torch.exp(-a["z"][0, t, 0]))
        expected = (a["C"][0, t] @ h + a["D"][0] * a["u"][0, t, 0]) * gate
        torch.testing.assert_close(y[0, t, 0], expected, rtol=1e-12, atol=1e-12)


@fast
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 5, 4), (3, 15, 5, 4), (2, 16, 16, 1), (2, 17, 33, 16), (1, 257, 8, 3), (40, 20, 70, 2)],
)
def test_fast_equals_the_loop(impl, dtype, tolerance, shape):
    arguments = make(*shape, dtype=dtype)
    assert_all_near(outcome(arguments, impl), outcome(arguments, "naive"), tolerance)


@fast
@pytest.mark.parametrize("absent", ["D", "z", "delta_bias", "state", "start"])
def test_what_may_be_absent(impl, absent):
    arguments = make() | {absent: None}
    assert_all_near(outcome(arguments, impl), outcome(arguments, "naive"), 1e-12)


@fast
def test_without_softplus(impl):
    arguments = make() | {"delta_softplus": False, "delta_bias": None}
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    assert_all_near(outcome(arguments, impl), outcome(arguments, "naive"), 1e-12)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_starts(data):
    rows, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    mask = st.lists(st.booleans(), min_size=rows * steps, max_size=rows * steps)
    arguments = make(rows, steps) | {"start": torch.tensor(data.draw(mask)).view(rows, steps)}
    expected = outcome(arguments, "naive")
    for impl in ["torch"] + ["cpu"] * bool(cpu_path.library()):
        assert_all_near(outcome(arguments, impl), expected, 1e-12)


@impls
def test_gradients_equal_finite_differences(impl):
    arguments = make(rows=2, steps=5, channels=2, states=2)

    def run(*inputs):
        return selective_scan(**arguments | dict(zip(GRADIENTS, inputs, strict=True)), impl=impl)

    inputs = tuple(arguments[name] for name in GRADIENTS)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@impls
@pytest.mark.parametrize("poison", [float("nan"), 1e30, float("inf")])
def test_nothing_leaks_across_a_start(impl, poison):
    """Neither forth into outputs and states nor, by gradients, back into the earlier episode."""
    arguments = make(rows=1, steps=24, starts=0)
    arguments["start"][0, 10] = True
    clean, final = selective_scan(**arguments, impl=impl)
    dirty = {name: x.detach().clone() if torch.is_tensor(x) else x for name, x in arguments.items()}
    for name in ("u", "delta", "B", "C", "z"):
        dirty[name][:, :10] = poison
    dirty["state"][:] = poison
    y, after = selective_scan(**dirty, impl=impl)
    assert torch.equal(y[:, 10:], clean[:, 10:])
    assert torch.equal(after, final)
    late = {name: x.detach().clone() if torch.is_tensor(x) else x for name, x in arguments.items()}
    for name in ("u", "B", "C"):
        late[name][:, 10:] = poison
    late["u"].requires_grad_()
    late["state"].requires_grad_()
    y, _ = selective_scan(**late, impl=impl)
    du, dstate = torch.autograd.grad(y.sum(), [late["u"], late["state"]])
    assert du[:, :10].isfinite().all() and dstate.isfinite().all()


@impls
def test_no_gradient_crosses_a_start(impl):
    arguments = make(rows=1, steps=24, starts=0)
    arguments["start"][0, 10] = True
    y, final = selective_scan(**arguments, impl=impl)
    inputs = [arguments[name] for name in ("u", "delta", "B", "state")]
    *before, dstate = torch.autograd.grad(y[:, 10:].sum() + final.sum(), inputs)
    assert all((x[:, :10] == 0).all() and (x[:, 10:] != 0).any() for x in before)
    assert (dstate == 0).all()


@impls
def test_splitting_carries_gradients_through_the_state(impl):
    arguments = make(steps=21)
    first, second = (
        {
            n: x[:, part] if n in ("u", "delta", "B", "C", "z", "start") else x
            for n, x in arguments.items()
        }
        for part in (slice(0, 9), slice(9, None))
    )
    whole = outcome(arguments, impl)
    y_1, state = selective_scan(**first, impl=impl)
    y_2, final = selective_scan(**second | {"state": state}, impl=impl)
    y = torch.cat([y_1, y_2], 1)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    loss = (y * weights).sum() + final.cos().sum()
    gradients = torch.autograd.grad(loss, [arguments[name] for name in GRADIENTS])
    assert_all_near([y, final, *gradients], whole, 1e-12)


@impls
def test_steps_equal_the_scan(impl):
    arguments = make(steps=20, starts=0)
    y, final = selective_scan(**arguments, impl=impl)
    state, outputs = arguments["state"], []
    moving = ("u", "delta", "B", "C", "z")
    constants = {name: arguments[name] for name in ("A", "D", "delta_bias", "delta_softplus")}
    for t in range(20):
        moment = {name: arguments[name][:, t] for name in moving}
        y_t, state = selective_scan_step(**moment, **constants, state=state)
        outputs.append(y_t)
    assert_all_near([torch.stack(outputs, 1), state], [y, final], 1e-12)


@impls
def test_bfloat16_in_float32_inside(impl):
    """What is rounded is the inputs and the outputs, not the state: a slow decay goes on."""
    steps = 2000
    one = torch.ones(1, steps, 1, dtype=torch.bfloat16)
    A = torch.full((1, 1), -0.001)
    y, final = selective_scan(one, one, A, one, one, impl=impl)
    exact = (1 - math.exp(-0.001 * steps)) / (1 - math.exp(-0.001))
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert final.item() == pytest.approx(exact, rel=1e-4)
    assert y[0, -1].item() == pytest.approx(exact, rel=4e-3)


@fast
def test_bfloat16_gradients_have_their_inputs_types(impl):
    exact = make(dtype=torch.float32, steps=30)
    rounded = dict(exact)
    for name in ("u", "delta", "B", "C", "z"):
        rounded[name] = exact[name].detach().bfloat16().requires_grad_()
    found, expected = outcome(rounded, impl), outcome(rounded, "naive")
    assert_all_near(found, expected, 1e-2)
    assert found[2].dtype == torch.bfloat16 and found[4].dtype == torch.float32


@fast
def test_decays_beyond_the_exponent_s_range(impl):
    """exp(−1000) is 0 and exp(100) is large, as in the equation."""
    for rate, kind in ((-1000, torch.float32), (80, torch.float32), (-800, torch.float64)):
        one, A = torch.ones(1, 2, 1, dtype=kind), torch.full((1, 1), float(rate), dtype=kind)
        found, expected = (selective_scan(one, one, A, one, one, impl=i) for i in (impl, "naive"))
        assert_all_near(found, expected, 1e-5)
    one = torch.ones(1, 1, 1)
    for rate, expected in ((-1000, 1), (100, math.inf)):
        _, final = selective_scan(one, one, rate * one[0], one, one, state=one, impl=impl)
        assert final.item() == expected


@fast
def test_the_same_input_gives_the_same_bits_whatever_the_threads(impl):
    arguments = make(rows=4, steps=60, channels=40, states=8, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 2) if impl == "cpu" else (1, 1):
            torch.set_num_threads(count)
            found.append(outcome(arguments, impl))
    finally:
        torch.set_num_threads(threads)
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True)
    )


@impls
def test_nothing_given_is_written(impl):
    arguments = make()
    copies = {name: x.clone() for name, x in arguments.items() if torch.is_tensor(x)}
    outcome(arguments, impl)
    assert all(torch.equal(arguments[name], x) for name, x in copies.items())


@impls
def test_strided_inputs(impl):
    arguments = make()
    strided = dict(arguments)
    for name in ("u", "B", "start", "state"):
        strided[name] = arguments[name].transpose(0, 1).contiguous().transpose(0, 1)
    assert_all_near(outcome(strided, impl), outcome(arguments, impl), 1e-14)


def kept_bytes(impl, steps):
    """Bytes that a scan keeps for its backward pass."""
    arguments, kept = make(rows=1, steps=steps, channels=32, states=16), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(**arguments, impl=impl)
    return sum(kept.values())


@fast
def test_memory_kept_is_that_of_the_inputs(impl):
    """A few times the (B, T, D) tensors; all states would be N = 16 times."""
    grown = kept_bytes(impl, 512) - kept_bytes(impl, 256)
    assert grown <= 10 * 256 * 32 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"impl": "gpu"}, "impl 'gpu' is unknown; use one of 'naive', 'torch', 'cpu', 'cuda'"),
        ({"B": torch.zeros(3, 7, 3)}, r"B has shape \(3, 7, 3\); it needs \(3, 7, 4\)"),
        ({"state": torch.zeros(1, 5, 4)}, r"state has shape \(1, 5, 4\); it needs \(3, 5, 4\)"),
        ({"u": torch.zeros(3, 7, 5).half()}, "u has type torch.float16; it needs bfloat16 or"),
        ({"start": torch.zeros(3, 7)}, "start has type torch.float32; it needs bool"),
        ({"start": torch.zeros(3, 6).bool()}, r"start has shape \(3, 6\)"),
        ({"u": torch.zeros(3, 0, 5)}, "no dimension empty"),
        ({"z": torch.zeros(3, 7, 5, device="meta")}, "z is on meta, u on cpu"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**make() | arguments)


def test_triton_refuses_the_cpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="impl 'triton' needs tensors on CUDA, not cpu"):
        selective_scan(**make(dtype=torch.float32), impl="triton")


def test_the_choice_is_logged_once(caplog):
    choice.fastest_on_cpu.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            selective_scan(**make())
    chosen = "cpu" if cpu_path.library() else "torch"
    lines = [r.message for r in caplog.records if "runs on" in r.message]
    assert lines == [f"selective_scan: '{chosen}' runs on cpu in torch.float64 with N = 4"]


def test_without_a_compiler_it_warns_once_and_runs_in_torch(monkeypatch, caplog):
    def fail(*about):
        raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(extension, "compile_library", fail)
    expected = selective_scan(**make(), impl="torch")
    caches = (cpu_path.library, choice.fastest_on_cpu)
    for cache in caches:
        cache.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = [selective_scan(**make()) for _ in range(2)]
        with pytest.raises(RuntimeError, match="impl 'cpu' needs a C\\+\\+ compiler"):
            selective_scan(**make(), impl="cpu")
    finally:
        for cache in caches:
            cache.cache_clear()
    assert torch.equal(found[0][0], expected[0])
    assert caplog.text.count("Ninja is required") == 1


def test_importing_compiles_and_loads_nothing():
    code = "import sys, decision_s4.kernels; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unwanted = {"triton", "torch.utils.cpp_extension", "decision_s4.kernels.extension"}
    assert not unwanted & set(out.stdout.split())


@impls
def test_mambapy_agrees(impl):
    """An implementation by others, without starts and carried state."""
    pscan = pytest.importorskip("mambapy.pscan").pscan
    a = make(steps=32, starts=0, dtype=torch.float32) | {"state": None, "start": None}
    delta = torch.nn.functional.softplus(a["delta"] + a["delta_bias"])[..., None]
    h = pscan(torch.exp(delta * a["A"]), delta * a["B"][:, :, None] * a["u"][..., None])
    y = (h @ a["C"][..., None]).squeeze(-1) + a["D"] * a["u"]
    y = y * torch.nn.functional.silu(a["z"])
    found, final = selective_scan(**a, impl=impl)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final, h[:, -1], rtol=1e-4, atol=1e-4)
