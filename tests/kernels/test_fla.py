"""flash-linear-attention over packed rows equals the equation; on the CPU with its own loop.

Its kernels run on CUDA alone. What stands around them, episodes as its sequences and our arguments
as its own, is held to the loop everywhere, with fla's equation (its documentation) in their place.
"""

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from decision_s4.kernels import fla
from decision_s4.kernels.delta_rule import by_fla, delta_rule
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.packing import Packing

CUDA = torch.cuda.is_available() and importlib.util.find_spec("fla") is not None
on_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device and fla-core")
both = pytest.mark.parametrize("op", [delta_rule, gated_linear])
SIZES = [(2, 300, 4, 16, 16), (3, 130, 2, 64, 32), (1, 65, 1, 20, 12), (2, 500, 2, 128, 128)]
SIZES += [(1, 130, 1, 256, 64)]


def make(op, rows, steps, heads, key, value, low=torch.float64, device="cpu", per_key=True):
    """Arguments of `op` but the packing; |k| = 1, β in (0, 2), gates in [−1, 0]."""
    torch.manual_seed(steps)
    q, k = torch.randn(2, rows, steps, heads, key, dtype=torch.float64)
    k = F.normalize(k, dim=-1)
    w = 2 * torch.rand(rows, steps, heads, 1) * k
    v = torch.randn(rows, steps, heads, value)
    gate = -torch.rand(rows, steps, heads, key if per_key else 1)
    state = torch.randn(rows, heads, key, value)
    inputs = [q * key**-0.5, k, w, v] if op is delta_rule else [q * key**-0.5, k, v]
    wide = torch.float64 if low == torch.float64 else torch.float32
    inputs = [x.to(device, low) for x in inputs] + [x.to(device, wide) for x in (gate, state)]
    return [x.requires_grad_() for x in inputs]


def packed(rows, steps, device="cpu"):
    torch.manual_seed(rows)
    start, valid = torch.rand(rows, steps) < 0.03, torch.rand(rows, steps) < 0.9
    start[0, 0] = True
    return Packing(start.to(device), valid.to(device))


def outcome(run, inputs, packing):
    """Outputs, final state, and the gradient of a loss on both in every input."""
    o, final = run(*inputs, packing)
    weights = torch.sin(torch.arange(o.numel(), device=o.device, dtype=torch.float64))
    loss = (o * weights.view_as(o)).sum() + final.double().cos().sum()
    return [o, final, *torch.autograd.grad(loss, inputs)]


def equation(op, inputs, packing):
    """The loop in float64 on the CPU."""
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    valid = None if packing.valid is None else packing.valid.cpu()
    run = op.__globals__["naive"].scan
    return outcome(run, exact, Packing(packing.start.cpu(), valid))


def assert_near(found, expected, tolerance):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.detach().cpu().double() - b).norm() / (b.norm() + 1e-20)
        assert error <= tolerance, f"{i}: {error:.1e}"


def sequences(step, inputs, initial_state, cu_seqlens):
    """fla's contract for sequences end to end: (1, S, …) and (N, …) -> o (1, S, …), states."""
    outputs, states = [], []
    bounds = cu_seqlens.tolist()
    for n, (begin, end) in enumerate(itertools.pairwise(bounds)):
        S = initial_state[n]
        for t in range(begin, end):
            S, o = step(S, *(x[0, t] for x in inputs))
            outputs.append(o)
        states.append(S)
    return torch.stack(outputs)[None], torch.stack(states)


def dplr(q, k, v, a, b, gk, *, scale, initial_state, output_final_state, cu_seqlens):
    """S_t = diag(e^gk) S + b (aᵀ S) + k vᵀ, o = scale Sᵀ q."""

    def step(S, q, k, v, a, b, g):
        looked_up = torch.einsum("hkv,hk->hv", S, a)
        S = g.exp()[..., None] * S + b[..., None] * looked_up[:, None] + k[..., None] * v[:, None]
        return S, scale * torch.einsum("hkv,hk->hv", S, q)

    return sequences(step, (q, k, v, a, b, gk), initial_state, cu_seqlens)


def gla(q, k, v, g, *, scale, initial_state, output_final_state, cu_seqlens):
    """S_t = diag(e^g) S + k vᵀ, o = scale Sᵀ q."""

    def step(S, q, k, v, g):
        S = g.exp()[..., None] * S + k[..., None] * v[:, None]
        return S, scale * torch.einsum("hkv,hk->hv", S, q)

    return sequences(step, (q, k, v, g), initial_state, cu_seqlens)


def with_loop(op):
    """What `op` does with impl 'fla', its kernel replaced."""
    if op is gated_linear:
        return lambda q, k, v, g, state, packing: fla.scan(
            gla, (q, k, v, g.expand(k.shape)), state, packing
        )
    return lambda *x: fla.scan(dplr, by_fla.transition(*x[:-2]), *x[-2:])


@both
@pytest.mark.parametrize("per_key", [True, False])
def test_episodes_are_its_sequences(op, per_key):
    inputs, packing = make(op, 3, 40, 2, 3, 4, per_key=per_key), packed(3, 40)
    assert_near(outcome(with_loop(op), inputs, packing), equation(op, inputs, packing), 1e-12)
    packing = Packing(packing.start)
    assert_near(outcome(with_loop(op), inputs, packing), equation(op, inputs, packing), 1e-12)


@both
def test_a_row_without_a_valid_step_keeps_its_state(op):
    *inputs, state = make(op, 2, 5, 1, 3, 4)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    o, final = with_loop(op)(*inputs, state, Packing(~nothing, nothing))
    assert o.abs().max() == 0 and torch.equal(final, state)


@both
def test_what_it_cannot_run_on_is_said(op, monkeypatch):
    inputs, packing = make(op, 1, 3, 1, 2, 2), packed(1, 3)
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"impl 'fla' needs flash-linear-attention: pip install"):
        op(*inputs, packing, impl="fla")
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="impl 'fla' needs tensors on CUDA, not cpu; use 'torch'"):
        op(*inputs, packing, impl="fla")


def test_float32_is_rounded_only_where_that_is_allowed(monkeypatch):
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object())
    x = torch.empty(1, device="meta")
    monkeypatch.setattr(fla, "PROVEN", False)
    assert fla.unasked(x) == "runs only by name yet"
    monkeypatch.setattr(fla, "PROVEN", True)
    assert "TF32" in fla.unasked(x) and "on CUDA" in fla.unasked(x.bfloat16())
    try:
        torch.set_float32_matmul_precision("high")
        assert "on CUDA" in fla.unasked(x)
    finally:
        torch.set_float32_matmul_precision("highest")


@on_cuda
@both
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("low, tolerance", [(torch.bfloat16, 2e-2), (torch.float32, 5e-3)], ids=str)
def test_it_equals_the_equation_on_cuda(op, size, low, tolerance):
    inputs, packing = make(op, *size, low, "cuda"), packed(*size[:2], "cuda")
    found = outcome(lambda *x: op(*x, impl="fla"), inputs, packing)
    assert_near(found, equation(op, inputs, packing), tolerance)


@on_cuda
@both
def test_one_gate_a_head_and_no_holes_on_cuda(op):
    inputs = make(op, 2, 200, 2, 32, 32, torch.bfloat16, "cuda", per_key=False)
    packing = Packing(packed(2, 200, "cuda").start)
    found = outcome(lambda *x: op(*x, impl="fla"), inputs, packing)
    assert_near(found, equation(op, inputs, packing), 2e-2)


@on_cuda
@both
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_nothing_leaks_across_a_start_on_cuda(op, poison):
    *inputs, state = (x.detach() for x in make(op, 1, 130, 2, 16, 16, torch.bfloat16, "cuda"))
    start = torch.zeros(1, 130, dtype=torch.bool, device="cuda")
    start[0, 70] = True
    clean, final = op(*inputs, state, Packing(start), impl="fla")
    dirty = [x.clone() for x in inputs]
    for x in dirty[:-1]:
        x[:, :70] = poison
    o, after = op(*dirty, torch.full_like(state, poison), Packing(start), impl="fla")
    assert torch.equal(o[:, 70:], clean[:, 70:]) and torch.equal(after, final)


@on_cuda
def test_it_is_the_choice_where_ours_cannot_run_on_cuda(caplog, monkeypatch):
    monkeypatch.setattr(fla, "PROVEN", True)
    from decision_s4.kernels import choice

    choice.say.cache_clear()
    wide = make(gated_linear, 1, 20, 1, 200, 16, torch.bfloat16, "cuda")
    with caplog.at_level("INFO"):
        gated_linear(*wide, packed(1, 20, "cuda"))
        for low in (torch.bfloat16, torch.float32):
            inputs = make(delta_rule, 1, 20, 1, 200, 16, low, "cuda")
            delta_rule(*inputs, packed(1, 20, "cuda"))
    assert "gated_linear: 'fla' runs on cuda" in caplog.text
    assert "delta_rule: 'fla' runs on cuda" in caplog.text
    assert "delta_rule: 'torch' runs on cuda" in caplog.text


def test_its_kernels_are_held_to_one_configuration(monkeypatch):
    class Autotuner(SimpleNamespace):
        pass

    class Heuristics(SimpleNamespace):
        pass

    def tuned(*pairs):
        configs = [SimpleNamespace(num_warps=warps, num_stages=stages) for warps, stages in pairs]
        return Autotuner(configs=configs)

    bare, inner = tuned((8, 2), (4, 3), (4, 2)), tuned((1, 2), (2, 4))
    module = SimpleNamespace(bare=bare, wrapped=Heuristics(fn=Heuristics(fn=inner)), other=1)
    tuner = SimpleNamespace(Autotuner=Autotuner, Heuristics=Heuristics)
    monkeypatch.setitem(sys.modules, "triton.runtime.autotuner", tuner)
    monkeypatch.setitem(sys.modules, "fla.ops.some", module)
    fla.settle(object())
    assert [(c.num_warps, c.num_stages) for c in bare.configs] == [(4, 2)]
    assert [(c.num_warps, c.num_stages) for c in inner.configs] == [(2, 4)]
