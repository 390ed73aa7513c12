"""Patching finds the planted step and place; a direction that only seems to act is told apart."""

import pytest
import torch
from planted import FREE, new_policy, planted
from test_layer_probes import STEP, query

from decision_s4.agents.backbones import BACKBONES
from decision_s4.agents.probes.base import Target, make_probe, make_probes
from decision_s4.agents.probes.patching import effects, pooled_shares
from decision_s4.agents.probes.reading import residual_places
from decision_s4.agents.probes.subspace import split_direction, subspace_effect
from decision_s4.envs.errors import UserError

LAG = 3


def test_the_copied_step_passes_before_the_layer_and_the_present_one_after():
    context = query(planted(LAG))
    found = effects(context, residual_places(context.policy))
    shares = pooled_shares([found, found], len(found.lags))
    assert found.lags == list(range(STEP + 1))
    wanted = torch.zeros_like(shares)
    wanted[0, LAG] = wanted[1, 0] = 1
    torch.testing.assert_close(shares, wanted)
    torch.testing.assert_close(found.estimated, found.patched)  # of a linear policy


def test_all_steps_of_a_place_together_are_the_other_episode():
    """Where nothing is left of the clean run, nothing is left of its answer."""
    context = query(new_policy("s4", tokens="three", n_layers=1), window=1)
    found = effects(context, residual_places(context.policy))
    assert found.patched[:, 0] == pytest.approx([found.whole] * 2, rel=1e-6)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_is_served(backbone):
    context = query(new_policy(backbone, n_layers=1), window=4)
    findings = make_probe("patching").examine([context, query(context.policy, window=3)])
    assert [row[0] for row in findings.tables[0].rows] == ["blocks.0.input", "features"]
    assert findings.tables[0].rows[1][1] == pytest.approx(1)  # the head reads one step


def test_a_policy_without_layers_is_refused_by_name():
    for name in ("patching", "sae"):
        with pytest.raises(UserError, match=f"probe '{name}' reads layers"):
            make_probes([name], new_policy("s4", tokens="observation"))


def test_the_planted_illusion_is_named_and_the_used_direction_is_not():
    """What differs is along e₅, which the head does not read; answers move along e₁, which rests.
    (e₁ + e₅) / √2 changes answers all the same. Of the used case, e₁ itself differs."""
    policy = new_policy("s4", FREE)
    with torch.no_grad():
        policy.head.linear.weight.copy_(torch.eye(2, 8))
    here, noise = torch.randn(20, 8).double(), torch.randn(20).double()
    seeming, used = torch.zeros(2, 8).double()
    seeming[[0, 5]], used[[0, 5]] = 1, 1
    aside, along = here.clone(), here.clone()
    aside[:, 5] += noise
    along[:, 0] += noise
    illusion = subspace_effect(policy, Target(0), here, aside, seeming)
    real = subspace_effect(policy, Target(0), here, along, used)
    half = noise.abs().mean().item() / 2
    assert tuple(illusion) == pytest.approx((0.5, half, 0, 0))
    assert tuple(real) == pytest.approx((0.5, half, 2 * half, 0))
    assert illusion.illusion
    assert not real.illusion


def test_the_two_parts_of_a_direction_are_what_is_read_and_what_is_not():
    policy, direction = new_policy("s4"), torch.randn(8).double()
    row, null = split_direction(policy, direction)
    weight = policy.head.linear.weight
    torch.testing.assert_close(weight @ row, weight @ direction)
    torch.testing.assert_close(weight @ null, torch.zeros(2).double())
