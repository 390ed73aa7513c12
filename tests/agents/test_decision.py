"""The learner learns what only memory, or only the return-to-go, can tell; its steps by hand."""

import copy
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import BACKBONES
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.rollout import rollout
from decision_s4.envs.trajectories import Trajectories

LENGTH, ROWS = 20, 16
names = pytest.mark.parametrize("backbone", sorted(BACKBONES))
BANDIT = "DecisionBandit-v0"


def make_learner(backbone="s4", updates=1, **options) -> DecisionLearner:
    torch.manual_seed(0)
    sizes = PolicyOptions(backbone, d_model=16, n_layers=1, d_embed=8, return_scale=1.0)
    policy = SequencePolicy(Box(-1, 1, (1,)), Discrete(2), sizes)
    given = {"learning_rate": 1e-2, "recurrence_learning_rate": 1e-2, "warmup_steps": 5}
    return DecisionLearner(
        policy, OptimiserOptions(**({"recurrence_learning_rate": 1e-2} | given | options)), updates
    )


def recall_batch(generator: torch.Generator) -> SimpleNamespace:
    """The first observation tells the action of the whole episode; later ones are zero.

    The previous action is hidden, or copying it would do.
    """
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


def recall_accuracy(learner: DecisionLearner, updates: int, forgetful: bool = False) -> float:
    """Share of right actions at the last step, after training."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates + 1):
        batch = recall_batch(generator)
        if forgetful:
            batch.start[:] = True
        learner.update(batch)
    with torch.no_grad():
        action = learner.policy.head.act(learner.policy(batch)[0])
    return (action == batch.action)[:, -1].double().mean().item()


@names
def test_it_learns_to_remember(backbone):
    assert recall_accuracy(make_learner(backbone, 150), 150) == 1


@names
def test_without_memory_it_cannot(backbone):
    assert 0.2 < recall_accuracy(make_learner(backbone, 60), 60, forgetful=True) < 0.8


class Bandit(gym.Env):
    """Four pulls at two arms, of which arm 1 pays 1; the observation tells nothing."""

    observation_space, action_space = Box(-1, 1, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.pulls = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.pulls += 1
        return np.zeros(1, np.float32), float(action), self.pulls == 4, False, {}


gym.register(BANDIT, entry_point=Bandit)


def bandit_data() -> Trajectories:
    """Each of the sixteen ways to pull four times."""
    arms = np.array([[n >> i & 1 for i in range(4)] for n in range(16)])
    return Trajectories(
        name="bandit",
        observation_space=Bandit.observation_space,
        action_space=Bandit.action_space,
        observations=np.zeros((5 * 16, 1), np.float32),
        actions=arms.reshape(-1),
        rewards=arms.reshape(-1).astype(np.float64),
        terminations=np.tile([False, False, False, True], 16),
        truncations=np.zeros(64, bool),
        lengths=np.full(16, 4),
    )


def test_the_return_asked_for_is_the_return_got():
    """Which arm is right follows from the return-to-go and, by memory alone, the pulls left."""
    learner = make_learner(updates=200, average_decay=0.9)
    batches = PackedBatches(bandit_data(), 64, seed=0)
    for _ in range(200):
        learner.update(next(batches))
    targets = [0.0, 1.0, 2.0, 3.0, 4.0]
    episodes = rollout(Actor(learner.averaged_policy), BANDIT, targets, seeds=[0] * 5)
    assert episodes.returns.tolist() == targets


def test_padding_counts_for_nothing():
    learner = make_learner()
    batch = recall_batch(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = learner.loss(batch)
    padded = SimpleNamespace(**{k: torch.cat([v, v[:, :9]], 1) for k, v in vars(batch).items()})
    padded.valid[:, LENGTH:] = False
    padded.action[:, LENGTH:] = -1  # no action of the space
    torch.testing.assert_close(learner.loss(padded), expected)
    batch.valid = None
    torch.testing.assert_close(learner.loss(batch), expected)


def test_the_loss_is_a_mean_over_steps_by_hand():
    learner = make_learner()
    head = learner.policy.head.linear
    with torch.no_grad():
        head.weight.zero_(), head.bias.copy_(torch.tensor([3.0, 1.0]).log())
    batch = recall_batch(torch.Generator().manual_seed(0))
    batch.action = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    batch.action[0] = 1
    expected = (np.log(4) + (ROWS - 1) * np.log(4 / 3)) / ROWS
    assert learner.loss(batch).item() == pytest.approx(expected)


def test_the_rate_warms_up_and_comes_down():
    learner = make_learner(updates=12, warmup_steps=4, recurrence_learning_rate=1e-3)
    batch, rates = recall_batch(torch.Generator().manual_seed(0)), []
    for _ in range(13):
        rates.append(learner.schedule.get_last_lr())
        learner.update(batch)
    main, slow = np.array(rates)[:, 0], np.array(rates)[:, -1]
    np.testing.assert_allclose(main[[0, 1, 3, 4, 8, 12]], [0.0025, 0.005, 0.01, 0.01, 0.005, 0])
    np.testing.assert_allclose(slow, main / 10)


def test_the_recurrence_takes_no_decay_and_never_more_than_the_common_rate():
    learner = make_learner(learning_rate=1e-3, recurrence_learning_rate=1.0)
    policy, groups = learner.policy, learner.optimiser.param_groups
    recurrence = {id(p) for p in policy.backbone.recurrence_parameters()}
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {id(p) for p in groups[-1]["params"]} == recurrence & {id(p) for p in trained}
    assert groups[-1]["initial_lr"] == 1e-3
    assert [group["weight_decay"] for group in groups] == [1e-4, 0, 0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(trained)


def test_the_average_follows_the_weights():
    learner = make_learner(updates=9, average_decay=0.75)
    batch, weight = recall_batch(torch.Generator().manual_seed(0)), learner.policy.project[0].weight
    seen = []
    for _ in range(3):
        learner.update(batch)
        seen.append(weight.detach().clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(learner.averaged_policy.project[0].weight.detach(), expected)
    assert not learner.averaged_policy.training
    assert learner.policy.training


def test_a_learner_goes_on_exactly_where_its_state_was_taken():
    def updates(learner, count):
        generator = torch.Generator().manual_seed(1)
        return [learner.update(recall_batch(generator))["loss"].item() for _ in range(count)]

    first, second = make_learner(updates=9), make_learner(updates=9)
    updates(first, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert updates(first, 3) == updates(second, 3)
    weights = (each.averaged_policy.state_dict().values() for each in (first, second))
    assert all(map(torch.equal, *weights))
