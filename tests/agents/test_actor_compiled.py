"""A compiled step acts as the policy's own step, on the same state, and is compiled once.

DECISION_S4_COMPILE=all compiles the steps of all backbones, some half a minute each the first time.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.flat_step import FlatStep, flattened
from decision_s4.agents.policies import make_policy as policy_of
from decision_s4.agents.policy import PolicyOptions
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels import compiled_rows
from decision_s4.kernels.policy_step import cpu

NAMES = sorted(BACKBONES | MEMORYLESS)
OLD = torch.__version__ < compiled_rows.OLDEST
COMPILED = NAMES if os.environ.get("DECISION_S4_COMPILE") == "all" else ["gla", "lru"]
SEEN = spaces.Dict({"b": spaces.Box(-np.inf, np.inf, (4,)), "a": spaces.Discrete(3)})
DONE = spaces.Discrete(3, start=2)
STARTS = [[True] * 2, [False] * 2, [False, True], [False] * 2, [False] * 2]


def make_policy(backbone="gla", seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_embed": 8, "n_layers": 1} | options
    policy = policy_of(SEEN, DONE, PolicyOptions(backbone=backbone, **sizes))
    with torch.no_grad():  # what begins at zero or one would hide mistakes
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy.eval()


def moments():
    steps = []
    for row in STARTS:
        start = torch.tensor(row)
        seen = {"b": torch.randn(2, 4), "a": torch.randint(3, (2,))}
        action = torch.randint(2, 5, (2,)) * ~start
        numbers = torch.zeros(2), torch.full((2,), 900.0)
        steps.append(TimeStep(seen, action, *numbers, start, ~start, ~start))
    return steps


def played(actor, steps):
    state, actions = actor.initial_state(2), []
    for step in steps:
        before = tree_map(torch.clone, state)
        action, after = actor.act(step, state)
        torch.testing.assert_close(state, before, rtol=0, atol=0)
        actions.append(action)
        state = after
    return torch.stack(actions), tree_leaves(state)


@pytest.mark.parametrize("backbone", NAMES)
def test_a_step_is_one_program_that_no_number_turns(backbone):
    policy, step = make_policy(backbone), moments()[0]
    state = policy.initial_state(2)
    flat, given = FlatStep(policy, step, state), flattened(step, state)
    with torch.no_grad():
        program = torch.export.export(flat, (given,)).module()
        given = flattened(moments()[1], tree_map(lambda leaf: leaf + 0.1, state))
        torch.testing.assert_close(program(given), flat(given))


@pytest.mark.parametrize("backbone", COMPILED)
def test_it_acts_as_the_policy_and_is_compiled_once(backbone, monkeypatch):
    if cpu.library() is None or OLD:
        pytest.skip("needs torch 2.13, a C++ compiler and ninja")
    steps = moments()
    for seed in (0, 1):
        policy = make_policy(backbone, seed)
        fast = Actor(policy, "compiled")
        (actions, state), (own_actions, own_state) = (
            played(actor, steps) for actor in (fast, Actor(policy))
        )
        assert fast._act.rows is not None
        assert torch.equal(actions, own_actions)
        torch.testing.assert_close(state, own_state, rtol=1e-5, atol=1e-5)
        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", None)


@pytest.mark.skipif(OLD, reason="needs torch 2.13")
def test_where_it_cannot_be_compiled_it_says_so_and_acts(tmp_path, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    policy = make_policy()
    found, wanted = (played(Actor(policy, impl), moments()[:1]) for impl in ("compiled", None))
    (said,) = (r.getMessage() for r in caplog.records if r.name == "decision_s4.agents.actor")
    assert said == "the policy acts by its own step, operation by operation: no compiler"
    assert found[0].shape == wanted[0].shape


@pytest.mark.skipif(OLD, reason="needs torch 2.13")
def test_a_library_of_something_else_is_not_trusted(tmp_path, monkeypatch, caplog):
    def other(path):
        return SimpleNamespace(loader=SimpleNamespace(run=lambda given: wrong))

    policy, step = make_policy(), moments()[0]
    state = policy.initial_state(2)
    with torch.no_grad():
        wrong = FlatStep(policy, step, state)(flattened(step, state))
    wrong[-1] = wrong[-1] + 0.01
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda program, package_path, inductor_configs: Path(package_path).touch(),
    )
    monkeypatch.setattr(compiled_rows, "TRIAL", "")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", other)
    actor = Actor(policy, "compiled")
    actor.act(step, state)
    assert "what was compiled is off by 1.0e-02" in caplog.text and actor._act.rows is None


@pytest.mark.skipif(OLD, reason="needs torch 2.13")
def test_a_library_that_kills_who_loads_it_kills_another_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_rows, "TRIAL", "import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda program, package_path, inductor_configs: Path(package_path).touch(),
    )
    actor, step = Actor(make_policy(), "compiled"), moments()[0]
    actor.act(step, actor.initial_state(2))
    assert "its library cannot be loaded (exit code -11)" in caplog.text
    assert actor._act.rows is None and not list(tmp_path.rglob("step.pt2"))


def test_an_older_torch_acts_by_the_own_step(monkeypatch, caplog):
    monkeypatch.setattr(compiled_rows, "OLDEST", "99.0")
    actor, step = Actor(make_policy(), "compiled"), moments()[0]
    actor.act(step, actor.initial_state(2))
    assert "compiling needs torch 99.0, this is 2." in caplog.text and actor._act.rows is None


def test_samples_differ():
    if cpu.library() is None or OLD:
        pytest.skip("needs torch 2.13, a C++ compiler and ninja")
    actor, step = Actor(make_policy(), "compiled"), moments()[0]
    state = actor.initial_state(2)
    found = {tuple(actor.act(step, state, deterministic=False)[0].tolist()) for _ in range(50)}
    assert len(found) > 2


@pytest.mark.parametrize(
    "options", [{"tokens": "three"}, {"context_mode": "recompute"}, {"train": True}]
)
def test_what_it_does_not_act_for(options):
    policy = make_policy(**{key: value for key, value in options.items() if key != "train"})
    policy.train("train" in options)
    with pytest.raises(ValueError, match="'compiled' acts for policies on the CPU in evaluation"):
        Actor(policy, "compiled")
