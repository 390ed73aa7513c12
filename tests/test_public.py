"""What `import decision_s4` offers: each name is what its module defines; together they train."""

import ast
import tomllib
from pathlib import Path

import pytest
import torch

import decision_s4
from decision_s4 import (
    Actor,
    DecisionLearner,
    OptimiserOptions,
    PackedBatches,
    PolicyOptions,
    load_dataset,
    make_policy,
    rollout,
)

ROOT = Path(decision_s4.__file__).parent


def typed() -> dict[str, str]:
    """Module and own name of what type checkers see, by public name."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("decision_s4."):
            for each in node.names:
                found[each.asname or each.name] = f"{node.module}:{each.name}"
    return found


def test_people_and_type_checkers_find_the_same():
    assert sorted(typed()) == decision_s4.__all__
    assert {n: f"decision_s4.{home}" for n, home in decision_s4._HOMES.items()} == typed()
    assert all(callable(getattr(decision_s4, name)) for name in decision_s4.__all__)


def test_what_is_not_there_is_said_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'decision_s4' has no attribute 'Playr'"):
        _ = decision_s4.Playr


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert decision_s4.__version__ == project["version"]


def test_a_loop_of_ones_own_trains_and_plays(monkeypatch, tmp_path):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path))
    data = load_dataset("hopper-mixed")
    torch.manual_seed(0)
    options = PolicyOptions(d_model=8, n_layers=1, d_embed=8)
    policy = make_policy(data.observation_space, data.action_space, options)
    policy.set_statistics(*data.observation_statistics())
    learner = DecisionLearner(policy, OptimiserOptions(warmup_steps=1), total_steps=30)
    batches = PackedBatches(data, 300, seed=0)
    losses = [float(learner.update(next(batches))["loss"]) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert rollout(Actor(learner.averaged_policy), "Hopper-v5", [1000.0], [0]).lengths[0] > 0
