"""What proves a probe, over every backbone, which joins by being registered.

Shapes: B rows, T steps.
"""

import pytest
import torch
from planted import FREE, new_batch, new_policy, without_biases
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import BACKBONES, ops
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
from decision_s4.envs.errors import UserError

STEPS = 7
names = pytest.mark.parametrize("name", sorted(BACKBONES))
tokens = pytest.mark.parametrize("tokens", ["step", "three"])


def total(parts) -> torch.Tensor:
    return sum(part.flatten(1).sum(1) for part in parts)


@names
@tokens
def test_tensorlens_is_the_policy(name, tokens):
    policy, batch = new_policy(name, tokens=tokens), new_batch(STEPS)
    _, state = policy(new_batch(4, seed=1))
    batch.start[0, 0] = False  # goes on from the state
    state = tree_map(torch.Tensor.detach, state)
    lens = tensorlens(policy, batch, action_at(STEPS - 1, 1), state)
    found = total(lens.contributions().values()) + lens.bias + lens.state_share
    assert torch.allclose(found, lens.answer, rtol=1e-10, atol=1e-12)
    features, _ = policy(batch, state)
    assert torch.allclose(lens.answer, policy.head.act(features)[:, -1, 1], rtol=1e-10)
    assert lens.state_share[1].abs() < 1e-12  # the second row has begun anew since
    for weight in lens.row.values():
        assert weight[1, :3].abs().max() == 0


@names
@tokens
@pytest.mark.parametrize("rules", ["lrp", "frozen"])
def test_relevance_is_conserved_without_biases(name, tokens, rules):
    policy = without_biases(new_policy(name, tokens=tokens))
    found = relevance(policy, new_batch(STEPS), action_at(STEPS - 1), rules)
    assert (found.absorbed.abs() <= 1e-6 * found.answer.abs()).all()
    assert (found.position is None) == (tokens == "step")


@names
def test_what_biases_absorb_is_reported(name):
    policy = new_policy(name)
    found = relevance(policy, new_batch(STEPS), action_at(STEPS - 1))
    lens = tensorlens(policy, new_batch(STEPS), action_at(STEPS - 1))
    frozen = relevance(policy, new_batch(STEPS), action_at(STEPS - 1), "frozen")
    assert torch.allclose(frozen.absorbed, lens.bias, rtol=1e-8, atol=1e-12)
    assert torch.allclose(total(found.inputs.values()) + found.absorbed, found.answer)
    assert ((found.conservation_gap > 0) & (found.conservation_gap < 1)).all()


@names
def test_maps_look_back_and_stay_within_the_episode(name):
    policy, batch = new_policy(name), new_batch(STEPS)
    answer = action_at(STEPS - 1)
    for part in ("layer", "scan"):
        maps = [mean_map(op) for op in operators(policy, batch, part)]
        weighted = gradient_weighted(policy, batch, answer, part)
        for each in (*maps, *weighted, rollout(maps), attribution_rollout(weighted)):
            assert each.shape == (2, STEPS, STEPS)
            assert each.min() >= 0
            assert each.triu(1).abs().max() == 0
            assert each[1, 3:, :3].abs().max() == 0
        assert torch.allclose(rollout(maps).sum(-1), torch.ones(2, STEPS, dtype=torch.float64))


@names
def test_gradient_weighted_maps_are_gradients_in_the_weights(name):
    """Against autograd through explicit rows, put in the place of the layer."""
    policy, batch, answer = new_policy(name), new_batch(STEPS), action_at(STEPS - 1)
    ops_ = operators(policy, batch)
    found = gradient_weighted(policy, batch, answer)
    for i, op in enumerate(ops_):
        rows = op.dense().requires_grad_()
        mixed = op.combine(rows, op.values) + op.bias + op.state_read
        with ops.taps({f"blocks.{i}.{op.output_tap}": lambda _, mixed=mixed: mixed}):
            result = answer(policy, policy(batch)[0])
        (gradient,) = torch.autograd.grad(result.sum(), rows)
        expected = (rows * gradient).clamp(min=0).mean(1)
        assert torch.allclose(found[i], expected, rtol=1e-8, atol=1e-12)


def test_a_retention_head_remembers_as_long_as_its_decay_says():
    (op, *_) = operators(new_policy("retnet"), new_batch(STEPS))
    decays = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))
    torch.testing.assert_close(layer_horizon(op).time_constants, -1 / decays.log())


@names
def test_horizons_are_within_the_episode(name):
    policy, batch = new_policy(name), new_batch(STEPS)
    for op in operators(policy, batch):
        found = layer_horizon(op)
        assert 1 <= found.epsilon_horizon <= STEPS
        assert 0 <= found.mean_distance < STEPS
        assert found.profile.sum() == pytest.approx(1)
        if found.time_constants is not None:
            assert (found.time_constants > 0).all()


@names
def test_relevance_patching_is_exact_where_the_policy_is_linear(name):
    """A change of what enters the head alone, under rules that leave it linear."""
    policy, clean, other = new_policy(name, hand=FREE), new_batch(STEPS), new_batch(STEPS, seed=2)
    answer = action_at(STEPS - 1)
    found = relevance_patching(policy, clean, other, answer, ["features", "blocks.1.input"])
    with torch.no_grad():
        expected = answer(policy, policy(other)[0]) - answer(policy, policy(clean)[0])
    assert torch.allclose(found["features"].sum(1), expected)
    assert found["blocks.1.input"].shape == (2, STEPS)


@names
def test_probes_leave_nothing_behind(name):
    policy, batch, answer = new_policy(name), new_batch(STEPS), action_at(2)

    def run():
        features, state = policy(batch)
        gradients = torch.autograd.grad(
            features.sin().sum(), list(policy.parameters()), allow_unused=True
        )
        return features, state, [g for g in gradients if g is not None]

    before = run()
    gradient_weighted(policy, batch, answer)
    tensorlens(policy, batch, answer)
    for rules in ops.RULES:
        relevance(policy, batch, answer, rules)
    gradient_field(policy, batch, answer)
    occlusion_field(policy, batch, answer, [0, 1])
    tree_map(lambda a, b: assert_equal(a, b), run(), before)
    assert not ops.is_open()


def assert_equal(a, b):
    assert torch.equal(a, b)


def test_a_policy_in_training_mode_is_refused():
    with pytest.raises(UserError, match=r"training mode; call policy.eval\(\)"):
        read(new_policy("s4").train(), new_batch(3), action_at(0))


def test_an_action_dimension_that_is_not_there_is_named():
    with pytest.raises(UserError, match="action dimension 2 is not there; they are 0 to 1"):
        read(new_policy("s4"), new_batch(3), action_at(0, 2))
