"""The probes that read layers, as a person names them, on one query.

Shapes: W steps of the window, F features.
"""

import math

import pytest
import torch
from planted import new_policy, planted

from decision_s4.agents.backbones import BACKBONES
from decision_s4.agents.probes.base import AttributionProbe, Target, make_probe, make_probes
from decision_s4.agents.probes.context import Context, make_context
from decision_s4.agents.probes.recordings import made
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task

LAG, STEP = 3, 8
MAPS = ("hidden-attention", "implicit-attention", "rollout", "gradient-rollout")
SIGNED = ("tensorlens", "lrp", "attnlrp", "lrp-selection")


def episode(policy, seed: int):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int):
        return torch.randn(STEP + 2, *shape, generator=draw, dtype=torch.float64)

    observation = normal(3).abs() + 0.5
    return made(policy, f"{seed}", observation, normal(2), 100 * normal(), normal())


def query(policy, window: int = 64) -> Context:
    others = [episode(policy, seed) for seed in (1, 2)]
    return make_context(policy, episode(policy, 0), others, STEP, Target(0), window)


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_steps_see_the_step_that_is_copied(name):
    found = make_probe(name).attribute(query(planted(LAG)))
    assert found.values.shape == (STEP + 1, 1)
    weights = found.values[:, 0]
    assert weights[STEP - LAG] == weights.max() > 0


@pytest.mark.parametrize("name", SIGNED)
def test_signed_maps_see_the_feature_that_is_copied(name):
    found = make_probe(name).attribute(query(planted(LAG)))
    expected = torch.zeros(STEP + 1, 6, dtype=torch.float64)
    expected[STEP - LAG, 1] = found.prediction  # observation 0, after the return
    assert torch.allclose(found.values, expected)
    assert found.bias == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize("window", [4, 64])
@pytest.mark.parametrize("tokens", ["step", "three"])
def test_signed_maps_and_their_bias_add_up(name, window, tokens):
    found = make_probe(name).attribute(query(new_policy("gla", tokens=tokens), window))
    assert found.values.sum().item() + found.bias == pytest.approx(found.prediction, rel=1e-9)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("tokens", ["step", "three"])
def test_every_backbone_is_served(backbone, tokens):
    context = query(new_policy(backbone, tokens=tokens), window=5)
    for name in (*MAPS, *SIGNED):
        found = make_probe(name).attribute(context)
        assert found.values.isfinite().all()
        assert found.values.abs().max() > 0
    findings = make_probe("horizon").examine([context, query(context.policy, window=4)])
    assert all(math.isfinite(value) for value in findings.scalars.values())
    assert len(findings.tables[0].rows) == 2


@pytest.mark.parametrize("tokens", ["step", "three"])
def test_a_policy_that_recomputes_is_served(tokens):
    """As it acts: the window is all that it knows."""
    policy = new_policy("gla", tokens=tokens, context_mode="recompute", context_steps=4)
    context = query(policy)
    assert len(context.features) == 4
    read = policy(episode(policy, 0).batch(STEP - 3, STEP + 1, begins=True))[0]
    assert context.prediction == pytest.approx(policy.head.act(read)[0, -1, 0].item(), rel=1e-9)
    for name in (*MAPS, *SIGNED, "gradient-x-input", "integrated-gradients", "occlusion"):
        found = make_probe(name).attribute(context)
        assert found.values.isfinite().all()
        assert found.values.abs().max() > 0
    lens = make_probe("tensorlens").attribute(context)
    assert lens.values.sum().item() + lens.bias == pytest.approx(lens.prediction, rel=1e-9)


@pytest.mark.parametrize(("tokens", "per_step"), [("step", 1), ("three", 3)])
def test_horizons_are_in_seconds_too_where_a_step_has_some(tokens, per_step):
    contexts = [query(new_policy("s4", tokens=tokens), window=5)]
    found = make_probe("horizon").examine(contexts, Task("CartPole-v1", (100.0,)))
    steps, seconds = found.tables
    assert seconds.title == "The same in seconds, of 0.02 a step"
    for row, same in zip(steps.rows, seconds.rows, strict=True):
        assert [0.02 / per_step * x for x in row[1:]] == pytest.approx(same[1:])
    assert len(make_probe("horizon").examine(contexts, Task("MountainCar-v0", (0.0,))).tables) == 1


def test_what_goes_on_for_longer_than_the_training_is_called_extrapolated():
    contexts = [query(new_policy("s4"), window=5)]
    longest = max(row[2] for row in make_probe("horizon").examine(contexts).tables[0].rows)

    def notes(learned: int | None) -> str:
        task = Task("MountainCar-v0", (0.0,), learned_steps=learned)
        return " ".join(make_probe("horizon").examine(contexts, task).notes)

    assert "trained" not in notes(None)
    enough = notes(math.ceil(longest))
    assert f"trained on stretches of {math.ceil(longest)} steps" in enough
    assert "extrapolated" not in enough
    assert "layer 0, 1 is longer" in notes(1)
    assert f"step {contexts[0].step} lies past that" in notes(1)


def test_a_policy_without_layers_is_refused_by_name():
    policy = new_policy("s4", tokens="observation")
    for name in (*MAPS, "horizon"):
        with pytest.raises(UserError, match=f"probe '{name}' reads layers.*--tokens observation"):
            make_probes([name], policy)
    found = make_probe("lrp").attribute(query(policy))
    assert found.values[-1, 1:4].abs().min() > 0
    assert found.values[:-1].abs().max() == 0


def test_relevance_stands_beside_occlusion_of_the_return():
    notes = make_probe("lrp").attribute(query(new_policy("s4"))).notes
    assert any(note.startswith("return-to-go: relevance") for note in notes)
    assert isinstance(make_probe("lrp"), AttributionProbe)
