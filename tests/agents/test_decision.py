"""The learner learns what only memory and the return-to-go can tell; one policy in both modes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from decision_s4.agents.actor import Actor
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions, SequencePolicy, parameter_count
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.datasets import load
from decision_s4.envs.timestep import TimeStep

LENGTH, ROWS = 12, 16


def recall_batch(generator: torch.Generator) -> SimpleNamespace:
    """The first observation tells the action of the whole episode; later ones are zero."""
    side = torch.randint(0, 2, (ROWS, 1), generator=generator)
    observation = torch.zeros(ROWS, LENGTH, 1)
    observation[:, 0] = 2.0 * side - 1
    shape = (ROWS, LENGTH)
    start = torch.zeros(shape, dtype=torch.bool)
    start[:, 0] = True
    return SimpleNamespace(
        observation=observation,
        previous_action=torch.zeros(shape, dtype=torch.long),
        return_to_go=torch.zeros(shape),
        action=side.expand(shape),
        start=start,
        valid=torch.ones(shape, dtype=torch.bool),
    )


@pytest.mark.parametrize("backbone", ["s4", "s4d"])
def test_it_learns_to_remember(backbone):
    torch.manual_seed(0)
    options = PolicyOptions(backbone, ("d_state=8",), d_model=16, n_layers=1, d_embed=8)
    policy = SequencePolicy(Box(-1, 1, (1,)), Discrete(2), options)
    settings = OptimiserOptions(
        1e-2, recurrence_learning_rate=1e-2, warmup_steps=5, average_decay=0.9
    )
    learner = DecisionLearner(policy, settings, total_steps=150)
    generator = torch.Generator().manual_seed(0)
    losses = [learner.update(recall_batch(generator))["loss"].item() for _ in range(150)]
    assert losses[0] > 0.5  # log 2 is 0.69: a policy without memory stays there after step one
    assert losses[-1] < 0.1


def test_parallel_actions_equal_stepped_ones_on_real_episodes():
    torch.manual_seed(0)
    data = load("hopper-mixed")
    policy = SequencePolicy(data.observation_space, data.action_space, PolicyOptions())
    policy.set_statistics(*data.observation_statistics())
    assert parameter_count(policy) < 100_000
    learner = DecisionLearner(policy, OptimiserOptions(), total_steps=30)
    batches = PackedBatches(data, 1000, seed=0)
    for _ in range(30):
        learner.update(next(batches))
    batch, actor = next(batches), Actor(policy.eval())
    parallel = policy.head.act(policy(batch)[0])[0]

    state, stepped = actor.initial_state(1), []
    no = torch.zeros(1, dtype=torch.bool)
    for t in range(batch.start.shape[1]):
        step = TimeStep(
            batch.observation[:, t],
            batch.previous_action[:, t],
            torch.zeros(1),
            batch.return_to_go[:, t],
            batch.start[:, t],
            no,
            no,
        )
        action, state = actor.act(step, state, deterministic=True)
        stepped.append(action[0])
    stepped = torch.stack(stepped)
    assert (stepped - parallel).norm() <= 1e-5 * parallel.norm()
    assert np.isfinite(stepped.numpy()).all()


def test_noise_is_for_training_only_and_an_unseen_action_changes_nothing():
    torch.manual_seed(0)
    options = PolicyOptions(d_embed=8, previous_action=False, observation_noise=1.0)
    policy = SequencePolicy(Box(-1, 1, (3,)), Box(-1, 1, (2,)), options)
    observation, one = torch.randn(4, 3), torch.ones(4)
    start = torch.zeros(4, dtype=torch.bool)

    def embedded(action: torch.Tensor) -> torch.Tensor:
        return policy.embed(one, observation, action, start)

    assert not torch.equal(embedded(torch.zeros(4, 2)), embedded(torch.zeros(4, 2)))
    policy.eval()
    assert torch.equal(embedded(torch.zeros(4, 2)), embedded(torch.ones(4, 2)))
