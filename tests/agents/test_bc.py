"""Behaviour cloning: blind to the return, with and without memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import BACKBONES, make_backbone
from decision_s4.agents.config import parse
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.training import TrainConfig
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import TimeStep

ROWS, STEPS = 8, 12
SMALL = PolicyOptions(d_model=16, n_layers=1, d_embed=8, condition_on_return=False)


def new_policy(**options) -> Policy:
    torch.manual_seed(0)
    return make_policy(Box(-1, 1, (1,)), Discrete(2), replace(SMALL, **options))


def signal_batch(delay: int) -> SimpleNamespace:
    """The action is the sign of the observation `delay` steps ago."""
    observation = torch.randn(ROWS, STEPS, 1)
    start = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=observation,
        previous_action=torch.zeros(ROWS, STEPS, dtype=torch.long),
        return_to_go=1000 * torch.randn(ROWS, STEPS),
        action=(observation.roll(delay, 1)[..., 0] > 0).long(),
        timestep=torch.arange(STEPS).expand(ROWS, STEPS),
        start=start,
        valid=torch.ones(ROWS, STEPS, dtype=torch.bool),
    )


def trained(delay: int, **options) -> tuple[Policy, float]:
    """A policy after 150 updates, and its share of right actions where they can be known."""
    policy = new_policy(**options)
    rates = OptimiserOptions(learning_rate=1e-2, weight_decay=0.1, average_decay=0.0)
    learner = DecisionLearner(policy, rates, 150)
    for _ in range(150):
        learner.update(signal_batch(delay))
    policy, batch = learner.averaged_policy, signal_batch(delay)
    with torch.no_grad():
        right = policy.head.act(policy(batch)[0]) == batch.action
    return policy, right[:, delay:].double().mean().item()


@pytest.mark.parametrize("tokens", ["step", "three"])
def test_the_return_is_not_seen_even_after_a_training(tokens):
    policy, _ = trained(0, tokens=tokens)
    batch = signal_batch(0)
    with torch.no_grad():
        expected, _ = policy(batch)
        batch.return_to_go = batch.return_to_go + 5000
        assert torch.equal(policy(batch)[0], expected)
    assert not any(parameter.any() for parameter in policy.embed_return.parameters())


def test_the_actor_does_not_see_it_either():
    actor = Actor(trained(0)[0])
    never = torch.zeros(1, dtype=torch.bool)
    actions = []
    for target in (0.0, 1e5):
        step = TimeStep(
            torch.ones(1, 1), torch.zeros(1).long(), torch.zeros(1), torch.tensor([target]),
            ~never, never, never,
        )  # fmt: skip
        actions.append(actor.act(step, actor.initial_state(1))[0])
    assert torch.equal(*actions)


def test_a_memoryless_policy_clones_what_it_sees():
    assert trained(0, backbone="mlp")[1] > 0.95


def test_but_not_what_it_saw():
    assert trained(1, backbone="mlp")[1] < 0.75
    assert trained(1, backbone="transformer")[1] > 0.95


def test_the_memoryless_backbone_treats_each_step_alone():
    torch.manual_seed(0)
    backbone = make_backbone("mlp", 8, 2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[False, False, True, False, False]] * 2)
    y, state = backbone(x, start=start)
    assert state == ((), ()) and backbone.context is None
    steps = [backbone.step(x[:, t], state, start[:, t])[0] for t in range(5)]
    torch.testing.assert_close(torch.stack(steps, 1), y, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(y[:, 3].sin().sum(), x)
    assert gradient.abs().amax((0, 2)).bool().tolist() == [False, False, False, True, False]


def test_it_is_known_by_name_but_no_sequence_layer():
    assert "mlp" not in BACKBONES  # whose laws ask for memory
    with pytest.raises(UserError, match="did you mean 'mlp'"):
        make_backbone("mlpp")
    with pytest.raises(UserError, match="expansion 0"):
        make_backbone("mlp", expansion=0)


def test_the_algorithm_is_a_configuration():
    config = parse(TrainConfig, ["--algo", "bc", "--backbone", "mlp"])
    assert (config.condition_on_return, config.previous_action) == (False, False)
    assert (config.tokens, config.sampling) == ("step", "episodes")
    assert (config.backbone, config.target_returns) == ("mlp", (0.0,))
