"""Maps beside those of shuffled weights: what ignores the weights is found out."""

import math

import pytest
import torch
from planted import new_policy
from test_gradients import context_of, policy_of

from decision_s4.agents.probes.base import AttributionProbe, make_probe
from decision_s4.agents.probes.faithfulness import faithfulness
from decision_s4.agents.probes.sanity import (
    cascade,
    mean_ranks,
    partial_rank_correlation,
    rank_correlation,
    shuffled_weights,
)


class Inputs(AttributionProbe):
    """Says that the largest inputs mattered, whoever is asked."""

    name = "inputs"

    def attribute(self, context):
        return context.attribution(self.name, context.features)


def test_a_map_that_ignores_the_weights_is_found_out():
    contexts = [context_of(policy_of(low=-5.0), step=step) for step in (11, 17, 23)]
    found = faithfulness([Inputs(), make_probe("occlusion")], contexts)
    assert found.beats_shuffled("inputs") == (0, 0, 0)
    assert found.mean("inputs", "kept") == pytest.approx((1, 1, 1))
    assert found.beats_shuffled("occlusion")[0] > 0
    assert found.mean("occlusion", "kept")[0] < 1
    assert [row[0] for row in found.weights_table().rows] == found.methods


def test_without_the_weights_check_there_are_dashes():
    contexts = [context_of(policy_of())]
    found = faithfulness([Inputs()], contexts, weights=False)
    assert found.weights_table().rows == [["inputs", "–", "–", "–", "–"]]


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    policy = new_policy("mamba")
    other = shuffled_weights(policy, 0)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
        assert a.numel() < 5 or not torch.equal(a, b)


def test_a_cascade_begins_at_the_head_and_ends_with_all():
    policy = new_policy("mamba")
    found = dict(cascade(policy, 0))
    assert list(found) == ["head", "layer 1", "layer 0", "all"]
    changed = [
        {
            name
            for name, p in other.named_parameters()
            if not torch.equal(p, policy.get_parameter(name))
        }
        for other in found.values()
    ]
    assert all(name.startswith("head") for name in changed[0])
    assert changed[0] < changed[1] < changed[2] < changed[3]
    assert not any(name.startswith("backbone.blocks.0") for name in changed[1])


def test_rank_correlation():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)


def test_what_two_maps_share_beyond_a_third():
    """Both follow the same trend; only one pair shares what is left."""
    draw = torch.Generator().manual_seed(0)
    trend, own, other = torch.linspace(0, 30, 300), *torch.randn(2, 300, generator=draw)
    maps = [trend + torch.randn(300, generator=draw) for _ in range(20)]
    common = mean_ranks(maps)
    assert rank_correlation(common, trend) > 0.999
    assert rank_correlation(trend + own, trend + other) > 0.95
    assert abs(partial_rank_correlation(trend + own, trend + other, common)) < 0.15
    assert partial_rank_correlation(trend + own, trend + own + 0.1 * other, common) > 0.9
    assert math.isnan(partial_rank_correlation(trend, other, trend))
