"""Sparse autoencoders find planted atoms; put in the loop, what is exact costs nothing."""

import pytest
import torch
from planted import new_policy
from test_layer_probes import STEP, episode

from decision_s4.agents.probes.base import Target, make_probe
from decision_s4.agents.probes.closed_loop import tapped_returns
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.sae import _constant
from decision_s4.agents.probes.sparse import explained_variance, fit, principal_reconstruction
from decision_s4.envs.task import Task

ATOMS, FEATURES, ACTIVE = 16, 12, 2


def sparse_sums(steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, D) sums of ACTIVE of ATOMS planted directions, more than there are features."""
    draw = torch.Generator().manual_seed(seed)
    planted = torch.nn.functional.normalize(
        torch.randn(ATOMS, FEATURES, generator=torch.Generator().manual_seed(9)), dim=1
    )
    which = torch.rand(steps, ATOMS, generator=draw).topk(ACTIVE, 1).indices
    amounts = 1 + torch.rand(steps, ACTIVE, generator=draw)
    return torch.zeros(steps, ATOMS).scatter(1, which, amounts) @ planted + 3, planted


def test_planted_atoms_are_found():
    (x, planted), (other, _) = sparse_sums(3000, 0), sparse_sums(1000, 1)
    model = fit(x, 2 * ATOMS, ACTIVE, updates=1500)
    explained = explained_variance(other, model(other))
    assert explained > 0.85
    assert explained > 0.2 + explained_variance(other, principal_reconstruction(x, other, ACTIVE))
    assert (model.codes(other) > 0).sum(1).max() <= ACTIVE
    alike = (model.decoder @ planted.T).max(0).values
    assert (alike > 0.9).double().mean() > 0.8


def test_shuffled_features_have_no_atoms():
    """The same columns without what ties them together are explained far less."""
    (x, _), (other, _) = sparse_sums(3000, 0), sparse_sums(1000, 1)
    shuffled = torch.stack([column[torch.randperm(len(column))] for column in x.T], 1)
    model = fit(shuffled, 2 * ATOMS, ACTIVE, updates=1500)
    assert explained_variance(other, model(other)) < 0.7


def test_as_many_components_as_features_explain_all():
    x, _ = sparse_sums(200, 0)
    found = principal_reconstruction(x, x, FEATURES)
    assert explained_variance(x, found) == pytest.approx(1, abs=1e-5)
    assert explained_variance(x, x.mean(0)) == pytest.approx(0, abs=1e-5)


def test_an_exact_reconstruction_costs_no_return(cartpole):
    task = Task("CartPole-v1", (100.0,))
    blind = {"features": _constant(torch.zeros(cartpole.options.d_model))}
    splices = {"nothing": {}, "itself": {"features": lambda x: x.clone()}, "zero": blind}
    found = tapped_returns(cartpole, task, splices, max_steps=60).rows
    rows = {name: cells for name, *cells in found}
    assert rows["nothing"] == rows["itself"] != rows["zero"]


def test_a_policy_is_judged_on_episodes_that_were_not_fitted():
    policy = new_policy("s4", n_layers=1)
    first, *rest = [episode(policy, seed) for seed in (1, 2, 3)]
    contexts = [make_context(policy, one, [first], STEP, Target(0)) for one in (first, *rest)]
    (table,) = make_probe("sae").examine(contexts).tables
    ((place, explained, by_components, in_use, dead),) = table.rows
    assert place == "features"
    assert max(explained, by_components) <= 1
    assert 0 < in_use <= 8
    assert 0 <= dead < 1
    assert "does not suffice" in make_probe("sae").examine(contexts[:1]).notes[0]
