"""policy_step: both fast paths equal the equation; a start forgets; nothing given is written."""

import logging

import pytest
import torch

from decision_s4.kernels import extension
from decision_s4.kernels.lti_scan import System
from decision_s4.kernels.policy_step import (
    Affine,
    Head,
    Inputs,
    Layer,
    Mlp,
    Norm,
    Plan,
    cpu,
    make_policy_step,
)
from decision_s4.kernels.policy_step.eager import EagerStep

SEEN, DONE = 5, 2


@pytest.fixture(scope="module")
def compiled():
    """Compiles the C++ library if this machine never did."""
    if cpu.library() is None:
        pytest.skip("no C++ library: needs a compiler and ninja")


def affine(inputs, outputs, dtype):
    return Affine(torch.randn(inputs, outputs, dtype=dtype), torch.randn(outputs, dtype=dtype))


def norm(width, dtype):
    return Norm(torch.randn(width, dtype=dtype), torch.randn(width, dtype=dtype), 1e-5)


def system(width, states, low_rank, dtype):
    kind = torch.complex(torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype)).dtype
    parts = [0.2 * torch.randn(width, states, dtype=kind) for _ in range(5 if low_rank else 3)]
    return System(*parts)


def make_plan(width=6, states=3, hidden=0, low_rank=True, head=True, dtype=torch.float64):
    def layer():
        mlp = Mlp(norm(width, dtype), affine(width, hidden, dtype), affine(hidden, width, dtype))
        return Layer(
            norm(width, dtype),
            system(width, states, low_rank, dtype),
            torch.randn(width, dtype=dtype),
            affine(width, width, dtype),
            mlp if hidden else None,
        )

    inputs = 1 + SEEN + DONE
    centre, reach = torch.tensor([[0.5, -1.0], [2.0, 3.0]], dtype=dtype)
    return Plan(
        torch.randn(inputs, dtype=dtype),
        affine(inputs, width, dtype),
        affine(width, width, dtype),
        (layer(), layer()),
        norm(width, dtype),
        Head(affine(width, DONE, dtype), centre, reach, True) if head else None,
    )


def moment(rows, starts=(), dtype=torch.float64):
    start = torch.zeros(rows, dtype=torch.bool)
    start[list(starts)] = True
    kind = {"dtype": dtype}
    parts = torch.randn(rows, **kind), torch.randn(rows, SEEN, **kind)
    return Inputs(*parts, torch.randn(rows, DONE, **kind), start)


def zeros(plan, rows):
    shapes = [(rows, *layer.system.a.shape, 2) for layer in plan.layers]
    return tuple(torch.zeros(shape, dtype=plan.dtype) for shape in shapes)


def play(step, plan, moments):
    state, outs = zeros(plan, len(moments[0].start)), []
    for inputs in moments:
        out, state = step(inputs, state)
        outs.append(out)
    return torch.stack(outs), state


CASES = [
    {},
    {"low_rank": False},
    {"hidden": 11},
    {"head": False},
    {"width": 33, "states": 9, "hidden": 70},
    {"width": 1, "states": 1},
]


@pytest.mark.parametrize("case", CASES)
def test_torch_equals_the_equation(case):
    torch.manual_seed(0)
    plan = make_plan(**case)
    moments = [moment(4, {0: range(4), 7: [1, 3]}.get(t, ())) for t in range(12)]
    wanted = play(make_policy_step(plan, "naive"), plan, moments)
    given = play(make_policy_step(plan), plan, moments)
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_cpp_equals_the_equation(case, compiled):
    torch.manual_seed(0)
    plan = make_plan(**case, dtype=torch.float32)
    starts = {0: range(19), 7: [1, 3]}
    moments = [moment(19, starts.get(t, ()), torch.float32) for t in range(12)]
    wanted = play(make_policy_step(plan, "naive"), plan, moments)
    given = play(make_policy_step(plan, "cpu"), plan, moments)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["naive", "torch", "cpu"])
def test_a_start_forgets_even_nan(impl, compiled):
    torch.manual_seed(0)
    plan = make_plan(dtype=torch.float32)
    step, inputs, clean = (
        make_policy_step(plan, impl),
        moment(2, [1], torch.float32),
        zeros(plan, 2),
    )
    poisoned = tuple(s.clone().index_fill_(0, torch.tensor([1]), torch.nan) for s in clean)
    bad_action = inputs.previous_action.clone()
    bad_action[1] = torch.inf
    given = step(inputs._replace(previous_action=bad_action), poisoned)
    torch.testing.assert_close(given, step(inputs, clean), rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["torch", "cpu"])
def test_nothing_given_is_written(impl, compiled):
    torch.manual_seed(0)
    plan = make_plan(dtype=torch.float32)
    inputs = moment(3, [0], torch.float32)
    state = tuple(torch.randn_like(s) for s in zeros(plan, 3))
    copies = [x.clone() for x in (*inputs, *state)]
    make_policy_step(plan, impl)(inputs, state)
    for given, copy in zip((*inputs, *state), copies, strict=True):
        assert torch.equal(given, copy)


def test_cpp_rows_do_not_know_each_other(compiled):
    torch.manual_seed(0)
    plan = make_plan(width=33, states=9, dtype=torch.float32)
    step, inputs = make_policy_step(plan, "cpu"), moment(40, [5], torch.float32)
    state = tuple(torch.randn_like(s) for s in zeros(plan, 40))
    together, after = step(inputs, state)
    for row in (0, 5, 39):
        alone, after_alone = step(
            Inputs(*(x[row : row + 1] for x in inputs)), tuple(s[row : row + 1] for s in state)
        )
        assert torch.equal(alone[0], together[row])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(after_alone, after, strict=True))


@pytest.mark.parametrize("impl", ["naive", "torch", "cpu"])
def test_nan_comes_through(impl, compiled):
    plan = make_plan(dtype=torch.float32)
    inputs = moment(2, dtype=torch.float32)
    inputs.observation[1, 0] = torch.nan
    out, _ = make_policy_step(plan, impl)(inputs, zeros(plan, 2))
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_cpp_names_what_does_not_fit(compiled):
    plan = make_plan(dtype=torch.float32)
    step, inputs, state = (
        make_policy_step(plan, "cpu"),
        moment(2, (), torch.float32),
        zeros(plan, 2),
    )
    with pytest.raises(RuntimeError, match="observation is"):
        step(inputs._replace(observation=inputs.observation[:, 1:]), state)
    with pytest.raises(RuntimeError, match="state is"):
        step(inputs, zeros(plan, 3))
    with pytest.raises(RuntimeError, match="state has 1 layers; the policy has 2"):
        step(inputs, state[:1])


def test_refusals():
    with pytest.raises(ValueError, match="impl 'fast' is unknown"):
        make_policy_step(make_plan(), "fast")
    with pytest.raises(ValueError, match=r"needs a float32 policy .* not torch.float64"):
        make_policy_step(make_plan(), "cpu")


def test_without_a_compiler_it_warns_and_acts_by_torch(monkeypatch, caplog):
    def fail(*about):
        raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(extension, "compile_library", fail)
    cpu.library.cache_clear()
    with caplog.at_level(logging.WARNING):
        step = make_policy_step(make_plan(dtype=torch.float32), "cpu")
    cpu.library.cache_clear()
    assert isinstance(step, EagerStep)
    assert "Ninja is required" in caplog.text and "\nand more" not in caplog.text
