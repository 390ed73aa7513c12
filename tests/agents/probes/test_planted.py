"""Each method on policies whose explanation is known, and on trained ones that must remember.

Shapes: B rows, T steps.
"""

import pytest
import torch
from planted import new_batch, new_policy, planted
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.probes.attention import (
    attribution_rollout,
    gradient_weighted,
    mean_map,
    operators,
    rollout,
)
from decision_s4.agents.probes.horizon import gradient_field, layer_horizon, occlusion_field
from decision_s4.agents.probes.reading import action_at, read
from decision_s4.agents.probes.relevance import relevance, relevance_patching
from decision_s4.agents.probes.tensorlens import tensorlens

STEPS, LAG, NOW = 9, 3, 7


def by_step(parts: dict[str, Tensor]) -> Tensor:
    """(B, T)"""
    return sum(part.sum(-1).abs() for name, part in parts.items() if name != "position")


ANSWER = action_at(NOW)
METHODS = {
    "implicit attention": lambda p, b: mean_map(operators(p, b)[0])[:, NOW],
    "hidden attention": lambda p, b: mean_map(operators(p, b, "scan")[0])[:, NOW],
    "gradient-weighted": lambda p, b: gradient_weighted(p, b, ANSWER)[0][:, NOW],
    "tensorlens": lambda p, b: by_step(tensorlens(p, b, ANSWER).contributions()),
    "receptive field": lambda p, b: gradient_field(p, b, ANSWER),
    "occlusion": lambda p, b: occlusion_field(p, b, ANSWER, range(STEPS)),
} | {
    rules: lambda p, b, rules=rules: by_step(relevance(p, b, ANSWER, rules).inputs)
    for rules in ops.RULES
}
methods = pytest.mark.parametrize("method", METHODS)


def positive_batch(steps: int, rows: int = 2):
    batch = new_batch(steps, rows)
    batch.observation = batch.observation.abs() + 0.5
    return batch


@methods
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("lag", [1, LAG])
def test_a_policy_that_copies_a_past_step_is_seen_to(method, linear, lag):
    policy, batch = planted(lag, linear), positive_batch(STEPS)
    found = METHODS[method](policy, batch)
    assert found.shape == (2, STEPS)
    assert (found.argmax(1) == NOW - lag).all()


@methods
def test_other_weights_destroy_what_was_seen(method):
    policy, batch = planted(LAG), positive_batch(STEPS)
    policy.backbone = new_policy("mamba", n_layers=1).backbone
    assert not (METHODS[method](policy, batch).argmax(1) == NOW - LAG).all()


def test_rollout_of_a_delay_is_the_delay_and_the_residual():
    maps = [mean_map(op) for op in operators(planted(LAG), new_batch(STEPS))]
    row = rollout(maps)[0, NOW]
    assert row.nonzero().flatten().tolist() == [NOW - LAG, NOW]
    assert row[NOW] == 0.5
    weighted = gradient_weighted(planted(LAG), positive_batch(STEPS), ANSWER)
    assert attribution_rollout(weighted)[0, NOW].nonzero().flatten().tolist() == [NOW - LAG, NOW]


def test_the_horizon_of_a_delay_is_its_lag():
    found = layer_horizon(operators(planted(LAG), new_batch(STEPS))[0])
    assert found.epsilon_horizon == LAG + 1
    assert found.mean_distance == pytest.approx(LAG)
    assert found.time_constants is None


@pytest.mark.parametrize("rules", sorted(ops.RULES))
def test_of_a_linear_policy_all_methods_say_the_same(rules):
    """Analytic: action 0 is observation 0 of LAG steps ago, whatever the weights' number."""
    policy, batch = planted(LAG), new_batch(STEPS)
    expected = torch.zeros_like(batch.observation)
    expected[:, NOW - LAG, 0] = batch.observation[:, NOW - LAG, 0]
    found = relevance(policy, batch, ANSWER, rules).inputs["observation"]
    assert torch.allclose(found, expected, rtol=1e-12)
    lens = tensorlens(policy, batch, ANSWER)
    assert torch.allclose(lens.contributions()["observation"], expected, rtol=1e-12)
    reading = read(policy, batch, ANSWER)
    gradient = reading.gradients()["observation"] * reading.inputs["observation"]
    assert torch.allclose(gradient, expected, rtol=1e-12)
    assert lens.bias.abs().max() == 0


def test_relevance_patching_of_a_linear_policy_is_patching():
    policy, clean, other = planted(LAG), new_batch(STEPS), new_batch(STEPS, seed=2)
    found = relevance_patching(policy, clean, other, ANSWER, ["blocks.0.input"])["blocks.0.input"]
    expected = torch.zeros_like(found)
    change = other.observation[..., 0] - clean.observation[..., 0]
    expected[:, NOW - LAG] = change[:, NOW - LAG]
    assert torch.allclose(found, expected, atol=1e-12)


def test_selection_is_seen_where_held_coefficients_hide_it():
    """y = v σ(r): held, what acts by the gate alone has no relevance."""

    def relevance_of_gate(rules: str) -> float:
        r = torch.tensor(0.7, requires_grad=True)
        v = torch.tensor(2.0, requires_grad=True)
        with ops.rules(rules):
            y = v * ops.coefficient("gate", torch.sigmoid(r))
        gradient = torch.autograd.grad(y, [v, r], allow_unused=True)[1]
        return 0.0 if gradient is None else float(gradient * r.detach())

    assert relevance_of_gate("lrp") == relevance_of_gate("attnlrp") == 0
    assert relevance_of_gate("selection") > 0


@pytest.mark.parametrize("factors", [2, 3])
def test_shared_factors_get_equal_parts_that_add_up(factors):
    values = torch.tensor([1.5, -2.0, 0.5][:factors], requires_grad=True)
    with ops.rules("attnlrp"):
        first, *rest = values
        product = ops.value(first, factors)
        for each in rest:
            product = product * ops.coefficient("factor", each, factors)
    relevances = torch.autograd.grad(product, values)[0] * values
    assert torch.allclose(relevances, (product / factors).expand(factors))
