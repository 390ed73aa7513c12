"""Episodes without end: in each row one follows on another, for learning while acting.

The rows reset nothing by themselves: an ending episode's own last observation is seen before the
next one's first, and no step is made up in between. Shapes: N rows.
"""

from typing import Any

import numpy as np

from decision_s4.envs.actions import environment_action
from decision_s4.envs.episode_table import EpisodeTable
from decision_s4.envs.rows import Outcome, Rows, check_outcome
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep


class Stream:
    """`count` rows of episodes, whose seeds are drawn from a generator seeded with `seed`."""

    def __init__(self, rows: Rows, count: int, seed: int):
        self.rows, self.all = rows, np.arange(count)
        self.generator = np.random.default_rng(seed)
        self.time = 0
        self.restart()

    def restart(self) -> None:
        """Begin new episodes everywhere."""
        count = len(self.all)
        self.table = EpisodeTable.begin(self.rows, [None] * count, self._seeds(count))

    def now(self, rows: np.ndarray | None = None) -> TimeStep:
        """What the rows, or some of them, see: after `step`, an ended one its last observation."""
        return self.table.time_step(self.all if rows is None else rows)

    def step(self, action: Tree) -> Outcome:
        """Step all rows with actions (N, …); then `renew` those that ended.

        Raises SimulatorError where what comes back is no number.
        """
        taken = environment_action(
            self.rows.action_space, action, np.ones(len(self.all), bool), self.time
        )
        outcome = self.rows.step(self.all, taken)
        check_outcome(outcome, self.time * len(self.all))
        self.table.update(self.all, taken, outcome)
        self.time += 1
        return outcome

    def renew(self) -> list[tuple[float, int]]:
        """Begin a new episode in the rows that ended; (return, length) of those that did."""
        ended = np.flatnonzero(~self.table.running)
        if not len(ended):
            return []
        table = self.table
        told = list(zip(table.returns[ended].tolist(), table.lengths[ended].tolist(), strict=True))
        table.renew(ended, self.rows.reset(self._seeds(len(ended)), ended))
        return told

    def state_dict(self) -> dict[str, Any]:
        """Which seeds come next; where the environments stand is not kept."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """New episodes, with the seeds that come next."""
        self.generator.bit_generator.state = state["generator"]
        self.restart()

    def _seeds(self, count: int) -> list[int]:
        return self.generator.integers(2**31, size=count).tolist()
