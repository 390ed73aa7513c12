"""What an agent would do at every moment of logged episodes, with the logged past as its own.

Row k of the answer belongs to row k of the observations: N steps and the E last observations.
"""

from collections.abc import Iterator

import numpy as np
import torch

from decision_s4.envs.actions import environment_action
from decision_s4.envs.spaces import Tree, leaf_spaces, map_tree
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.timestep import Agent, TimeStep, rows_of
from decision_s4.envs.trajectories import Trajectories


def logged_actions(
    agent: Agent, trajectories: Trajectories, target_return: float = 0.0, rows: int = 256
) -> Tree:
    """The agent's deterministic actions (N + E, …), as arrays of the action space's types.

    `rows` episodes go in lockstep; each asks for `target_return` less the logged rewards so far.
    """
    count = trajectories.num_steps + trajectories.num_episodes
    space = leaf_spaces(trajectories.action_space)
    actions = map_tree(lambda leaf: np.empty((count, *leaf.shape), leaf.dtype), space)
    order = np.argsort(-trajectories.lengths, kind="stable")  # the longest stay to the end
    for first in range(0, len(order), rows):
        episodes = order[first : first + rows]
        for row, action in _lockstep(agent, trajectories, target_return, episodes):
            map_tree(lambda leaf, new, row=row: leaf.__setitem__(row, new), actions, action)
    return actions


def _lockstep(
    agent: Agent, data: Trajectories, target: float, episodes: np.ndarray
) -> Iterator[tuple[np.ndarray, Tree]]:
    lengths, first = data.lengths[episodes], data.action_offsets[episodes]
    to_go = np.full(len(episodes), target)
    state, size = agent.initial_state(len(episodes)), len(episodes)
    for time in range(int(lengths[0]) + 1):
        running = int((lengths >= time).sum())
        if running < size / 2:
            state, size = rows_of(state, np.arange(running)), running
        step = np.minimum(first[:size] + time, first[:size] + lengths[:size])
        row = step + episodes[:size]
        seen = _time_step(data, row, step, time, to_go[:size])
        with torch.no_grad():
            action, state = agent.act(seen, state, True)
        alive = np.arange(size) < running
        yield row[alive], environment_action(data.action_space, action, alive, time)
        taken = alive & (time < lengths[:size])
        to_go[:size][taken] -= data.rewards[step[taken]]


def _time_step(
    data: Trajectories, row: np.ndarray, step: np.ndarray, time: int, to_go: np.ndarray
) -> TimeStep:
    before = np.maximum(step - 1, 0)
    nothing = torch.zeros(len(row), dtype=torch.bool)
    return TimeStep(
        map_tree(lambda leaf: as_tensor(leaf[row]), data.observations),
        map_tree(lambda leaf: as_tensor(leaf[before] * (time > 0)), data.actions),
        as_tensor(data.rewards[before] * (time > 0)),
        as_tensor(to_go.copy()),
        torch.full_like(nothing, time == 0),
        nothing,
        nothing,
    )
