"""What a policy would return, from logged data alone: fitted Q evaluation.

    Q_k = argmin_Q  mean (Q(s, a) − r − γ (1 − terminated) Q_{k−1}(s', π(s')))²
    V = mean Q(s, π(s))

over logged transitions (arXiv 1903.08738, algorithm 3; for ranking policies: 2007.09055), with a
target network in place of the rounds k. V is the mean over all logged steps: from first steps alone
it would tell nothing of what comes later than 1 / (1 − γ) steps. A policy with memory is asked what
it would do after the logged past, once, before the fit. The estimate is discounted, and far from
the data it is a guess: compare runs by it on the same data, and do not take it for a return.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.bootstrapping import follow, one_step_target, squared_error, target_of
from decision_s4.agents.critics import TwinCritic
from decision_s4.agents.encoders import set_statistics
from decision_s4.agents.optimisers import adam, take_step
from decision_s4.envs.hindsight import logged_actions
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Trajectories
from decision_s4.envs.transitions import TransitionBatches

CHUNK_STEPS = 1 << 15


@dataclass(frozen=True)
class FQEOptions:
    """How the value is fitted."""

    updates: int = 3000
    """Gradient steps."""
    batch_size: int = 512
    """Transitions a step."""
    discount: float = 0.998
    """γ."""
    width: int = 128
    """Width of the two hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    target_rate: float = 0.1
    """Share of the weights that the target network takes over at each step. Times `updates` it is
    the number of steps that rewards have come back: less than 1 / (1 − γ) ranks by luck."""


def fitted_q_value(
    agent: Agent,
    data: Trajectories,
    target_return: float = 0.0,
    options: FQEOptions | None = None,
    seed: int = 0,
) -> float:
    """The agent's mean discounted value over the logged steps, had it been asked for a return."""
    options = options or FQEOptions()
    actions = logged_actions(agent, data, target_return)
    torch.manual_seed(seed)
    critic = TwinCritic(data.observation_space, data.action_space, options.width, 2)
    set_statistics(critic.observation_features, *data.observation_statistics())
    _fit(critic, TransitionBatches(data, options.batch_size, seed), actions, options)
    return _mean_value(critic, data, actions) * _reward_scale(data)


def _fit(
    critic: TwinCritic, batches: TransitionBatches, actions: Tree, options: FQEOptions
) -> None:
    target, optimiser = target_of(critic), adam(critic, options.learning_rate)
    scale = _reward_scale(batches.trajectories)
    for _ in range(options.updates):
        step, episode = batches.draw()
        batch = batches.transitions(step, episode)
        with torch.no_grad():
            after = target(batch.next_observation, _rows(actions, step + episode + 1))
            wanted = one_step_target(
                batch.reward / scale, batch.terminated, after, options.discount
            )
        take_step(optimiser, squared_error(critic(batch.observation, batch.action), wanted))
        follow(target, critic, options.target_rate)


@torch.no_grad()
def _mean_value(critic: TwinCritic, data: Trajectories, actions: Tree) -> float:
    """Over all steps, in chunks, so that memory stays bounded."""
    total = 0.0
    for first in range(0, data.num_steps, CHUNK_STEPS):
        step = np.arange(first, min(first + CHUNK_STEPS, data.num_steps))
        row = data.observation_index(step)
        seen = map_tree(lambda leaf, row=row: as_tensor(leaf[row]), data.observations)
        total += critic(seen, _rows(actions, row)).mean(0).sum().item()
    return total / data.num_steps


def _reward_scale(data: Trajectories) -> float:
    """Rewards are fitted in units of their standard deviation."""
    return float(np.std(data.rewards)) or 1.0


def _rows(actions: Tree, row: np.ndarray) -> Tensor | Tree:
    return map_tree(lambda leaf: as_tensor(leaf[row]), actions)
