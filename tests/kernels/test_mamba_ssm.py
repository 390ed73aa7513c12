"""mamba-ssm: its reference agrees with ours, and its CUDA kernels run where they are right.

Where its Python files lie, without a GPU (`MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip
install --no-build-isolation --no-deps mamba-ssm einops`), the reference is taken from them, for
importing the package needs what CUDA builds.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decision_s4.kernels.selective_scan import by_mamba_ssm, selective_scan

BUILT = torch.cuda.is_available() and importlib.util.find_spec("selective_scan_cuda") is not None
on_cuda = pytest.mark.skipif(not BUILT, reason="needs a CUDA device and mamba-ssm built for it")
MOVED = ("u", "delta", "B", "C", "z")


def make(rows=2, steps=20, channels=6, states=4, low=torch.float32, device="cpu"):
    """Every argument but state, start and `impl`, wanting gradients."""
    torch.manual_seed(steps)
    wide, narrow = (rows, steps, channels), (rows, steps, states)
    shapes = {"u": wide, "delta": wide, "B": narrow, "C": narrow, "z": wide}
    shapes |= {"D": (channels,), "delta_bias": (channels,)}
    arguments = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    arguments |= {name: arguments[name].to(low) for name in MOVED}
    arguments["A"] = -4 * torch.rand(channels, states, device=device)
    return {name: x.requires_grad_() for name, x in arguments.items()}


def by_channel(arguments):
    return {name: x.transpose(1, 2) if name in MOVED else x for name, x in arguments.items()}


def assert_near(found, expected, tolerance):
    for name, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.detach().cpu().double() - b.detach().double()).norm() / b.norm()
        assert error <= tolerance, f"{name}: {error:.1e}"


def outcome(arguments, impl, final=False):
    """y, final state, and gradients of a loss on y (and the final state)."""
    y, last = selective_scan(**arguments, delta_softplus=True, impl=impl)
    weights = torch.sin(torch.arange(y.numel(), device=y.device)).view_as(y)
    loss = (y * weights).sum() + (last.sum() if final else 0)
    return [y, last, *torch.autograd.grad(loss, list(arguments.values()))]


def exactly(arguments):
    return {name: x.detach().cpu().double().requires_grad_() for name, x in arguments.items()}


def reference():
    """selective_scan_ref, from mamba-ssm's file."""
    found = importlib.util.find_spec("mamba_ssm")
    einops = pytest.importorskip("einops")
    if found is None:
        pytest.skip("mamba-ssm is not installed")
    path = Path(found.submodule_search_locations[0], "ops/selective_scan_interface.py")
    tree = ast.parse(path.read_text())
    tree.body = [part for part in tree.body if getattr(part, "name", "") == "selective_scan_ref"]
    names = {"torch": torch, "F": nn.functional, "rearrange": einops.rearrange}
    names["repeat"] = einops.repeat
    exec(compile(tree, path, "exec"), names)
    return names["selective_scan_ref"]


@pytest.mark.parametrize("impl", ["naive", "torch", "cpu"])
def test_its_reference_agrees(impl):
    run, arguments = reference(), make()
    y, last = run(**by_channel(arguments), delta_softplus=True, return_last_state=True)
    y = y.transpose(1, 2)
    weights = torch.sin(torch.arange(y.numel())).view_as(y)
    gradients = torch.autograd.grad((y * weights).sum() + last.sum(), list(arguments.values()))
    assert_near(outcome(arguments, impl, final=True), [y, last, *gradients], 2e-6)


def test_what_it_cannot_run_on_is_said(monkeypatch):
    arguments = make()
    monkeypatch.setattr(by_mamba_ssm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="impl 'mamba-ssm' needs mamba-ssm: pip install"):
        selective_scan(**arguments, impl="mamba-ssm")
    monkeypatch.setattr(by_mamba_ssm.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="needs tensors on CUDA, not cpu; use 'triton' or 'torch'"):
        selective_scan(**arguments, impl="mamba-ssm")


def refused(start=None, states=4, fresh=True, dtype=torch.float32):
    u, A = torch.empty(1, device="cpu"), torch.empty(2, states)
    fake = SimpleNamespace(u=SimpleNamespace(device=torch.device("cuda")), A=A, dtype=dtype)
    fake.start = u if start else None
    return by_mamba_ssm.misfit(fake, fresh)


def test_what_its_kernels_do_not_know(monkeypatch):
    monkeypatch.setattr(by_mamba_ssm.importlib.util, "find_spec", lambda name: object())
    assert refused() is None
    assert refused(start=True) == "knows no episode starts"
    assert refused(fresh=False) == "takes no state"
    assert refused(states=257) == "takes N up to 256, not 257"
    assert refused(dtype=torch.float64) == "needs bfloat16 or float32, not float64"


@pytest.fixture
def loop(monkeypatch):
    """The equation in place of its kernels, in its order of dimensions, on the CPU."""

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        found = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, impl="naive")
        return found[0].transpose(1, 2), found[1].detach() + 0 * u.sum()  # without its gradient

    name = "mamba_ssm.ops.selective_scan_interface"
    for part in ("mamba_ssm", "mamba_ssm.ops", name):
        monkeypatch.setitem(sys.modules, part, SimpleNamespace(selective_scan_fn=selective_scan_fn))
    monkeypatch.setattr(by_mamba_ssm, "misfit", lambda *given: None)


def test_its_order_of_dimensions(loop):
    arguments = make()
    assert_near(outcome(arguments, "mamba-ssm"), outcome(arguments, "naive"), 1e-6)


def test_a_gradient_through_its_final_state_is_refused(loop):
    with pytest.raises(ValueError, match="no gradient through the final state; use 'triton'"):
        outcome(make(), "mamba-ssm", final=True)


@on_cuda
@pytest.mark.parametrize("low, tolerance", [(torch.bfloat16, 1e-2), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("size", [(2, 300, 70, 16), (3, 1000, 128, 16), (1, 33, 8, 5)], ids=str)
def test_it_equals_the_equation_on_cuda(size, low, tolerance):
    arguments = make(*size, low=low, device="cuda")
    expected = outcome(exactly(arguments), "naive")
    assert_near(outcome(arguments, "mamba-ssm"), expected, tolerance)


@on_cuda
def test_a_gradient_through_its_final_state_is_refused_on_cuda():
    arguments = make(device="cuda")
    with pytest.raises(ValueError, match="no gradient through the final state; use 'triton'"):
        outcome(arguments, "mamba-ssm", final=True)
