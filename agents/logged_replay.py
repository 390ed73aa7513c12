"""A replay filled from logged trajectories, with the states that the policy would have had in them.

The policy reads each logged episode step by step, asked for `target` as when it acts, so that its
states fit the logged actions, not its own. Shapes: B episodes side by side.
"""

from collections.abc import Sequence

import numpy as np

from decision_s4.agents.actor import Actor
from decision_s4.agents.explorer import transition
from decision_s4.agents.replay import Replay
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import StoredState
from decision_s4.envs.episode_table import EpisodeTable
from decision_s4.envs.rows import Outcome
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.timestep import rows_of
from decision_s4.envs.trajectories import Trajectories

SIDE_BY_SIDE = 64


class LoggedRows:
    """Logged episodes as the rows of an environment: episode i goes as it went, whatever is done.

    An episode that the log cuts off is truncated there.
    """

    def __init__(self, trajectories: Trajectories, episodes: np.ndarray):
        self.observation_space = trajectories.observation_space
        self.action_space = trajectories.action_space
        self.episodes = [trajectories.episode(int(i)) for i in episodes]
        self.lengths = np.array([len(episode.rewards) for episode in self.episodes])
        self.time = 0

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        """The first observations (B, …); `seeds` are ignored."""
        return self._stacked("observations", np.arange(len(self.episodes)), 0)

    def actions(self, rows: np.ndarray) -> Tree:
        """What was done (n, …) at this moment."""
        return self._stacked("actions", rows, self.time)

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        """What followed, in the rows that have not ended."""
        t, self.time = self.time, self.time + 1
        terminated = np.array([bool(self.episodes[i].terminations[t]) for i in rows])
        return Outcome(
            self._stacked("observations", rows, t + 1),
            np.array([float(self.episodes[i].rewards[t]) for i in rows]),
            terminated,
            (self.lengths[rows] == t + 1) & ~terminated,
        )

    def close(self) -> None:
        """There is nothing to free."""

    def _stacked(self, name: str, rows: np.ndarray, t: int) -> Tree:
        parts = [map_tree(lambda leaf: leaf[t], getattr(self.episodes[i], name)) for i in rows]
        return map_tree(lambda *leaves: np.stack(leaves), *parts)


def remember(
    replay: Replay,
    trajectories: Trajectories,
    policy: SequencePolicy,
    stored: StoredState,
    target: float,
) -> None:
    """Put every logged step into the replay, episodes of like lengths side by side."""
    actor, longest_first = Actor(policy), np.argsort(-trajectories.lengths, kind="stable")
    for first in range(0, len(longest_first), SIDE_BY_SIDE):
        rows = LoggedRows(trajectories, longest_first[first : first + SIDE_BY_SIDE])
        _read(replay, rows, actor, stored, target)


def _read(
    replay: Replay, rows: LoggedRows, actor: Actor, stored: StoredState, target: float
) -> None:
    count = len(rows.episodes)
    table = EpisodeTable.begin(rows, [target] * count, [0] * count)
    state = actor.initial_state(count)
    kept = stored.keep(state, table.time_step(np.arange(count)))
    while (running := np.flatnonzero(table.running)).size:  # the first so many: the longest
        state, kept = rows_of((state, kept), running)
        seen, before = table.time_step(running), kept
        _, state = actor.act(seen, state)
        action = rows.actions(running)
        outcome = rows.step(running, action)
        table.update(running, action, outcome)
        kept = stored.keep(state, table.time_step(running))
        replay.add(transition(seen, before, action, outcome, kept, updates=0))
