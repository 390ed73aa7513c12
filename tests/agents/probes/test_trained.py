"""Tiny policies learn to copy the past: maps see that step, and lose it with the weights.

Shapes: B rows, T steps.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from planted import FREE, OBSERVATION
from torch import Tensor

from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.probes.horizon import gradient_field, occlusion_field
from decision_s4.agents.probes.reading import action_at
from decision_s4.agents.probes.relevance import relevance
from decision_s4.agents.probes.tensorlens import tensorlens

LAG, STEPS, ROWS = 2, 6, 32


def sample(seed: int) -> SimpleNamespace:
    """Observations that are independent from step to step."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=torch.randn(ROWS, STEPS, 3, generator=draw),
        previous_action=torch.zeros(ROWS, STEPS, 2),
        return_to_go=torch.zeros(ROWS, STEPS),
        start=start,
        valid=None,
    )


def trained(backbone: str) -> Policy:
    """a_t = the first two observations of LAG steps ago."""
    torch.manual_seed(0)
    options = PolicyOptions(backbone, d_model=16, n_layers=1, d_embed=16)
    policy = make_policy(OBSERVATION, FREE, options)
    policy.requires_grad_(True)
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for seed in range(300):
        batch = sample(seed)
        error = policy.head.act(policy(batch)[0])[:, LAG:] - batch.observation[:, :-LAG, :2]
        loss = error.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.1:  # of a variance of 1: it remembers
            return policy.eval()
    raise AssertionError(f"{backbone} did not learn to copy: {loss.item()}")


def magnitude(parts: dict[str, Tensor]) -> Tensor:
    """(B, T)"""
    return sum(part.sum(-1) for part in parts.values()).abs()


ANSWER = action_at(STEPS - 1)
METHODS = {
    "tensorlens": lambda p, b: magnitude(tensorlens(p, b, ANSWER).contributions()),
    "lrp": lambda p, b: magnitude(relevance(p, b, ANSWER).inputs),
    "gradient": lambda p, b: gradient_field(p, b, ANSWER),
    "occlusion": lambda p, b: occlusion_field(p, b, ANSWER, range(STEPS)),
}


def share_seen(policy: Policy, method: str) -> float:
    """Of the rows, how many have their largest weight at the step that was to be copied."""
    found = METHODS[method](policy, sample(1000))
    return (found.argmax(1) == STEPS - 1 - LAG).double().mean().item()


@torch.no_grad()
def randomised(policy: Policy) -> Policy:
    policy = copy.deepcopy(policy)
    for parameter in policy.parameters():
        parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return policy


@pytest.mark.parametrize("backbone", ["s4d", "mamba", "transformer", "gru"])
def test_what_was_learned_is_seen_and_lost_with_the_weights(backbone):
    policy = trained(backbone)
    found = {method: share_seen(policy, method) for method in METHODS}
    assert min(found.values()) > 0.6, found
    other = {method: share_seen(randomised(policy), method) for method in METHODS}
    assert max(other.values()) < 0.5, other
