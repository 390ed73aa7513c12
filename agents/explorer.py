"""Acting in an environment while learning: noise, hindsight, and the return that is asked for.

N episodes run in lockstep; whichever ends is followed by another. B = N transitions a step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import State
from decision_s4.agents.backbones.base import reset
from decision_s4.agents.kept import kept
from decision_s4.agents.replay import Replay, Transition
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import Stored, StoredState
from decision_s4.envs.actions import disturbed, environment_action
from decision_s4.envs.episode_table import EpisodeTable
from decision_s4.envs.errors import DivergedError
from decision_s4.envs.rows import Outcome, Rows, check_outcome
from decision_s4.envs.spaces import map_tree
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.timestep import TimeStep


@dataclass(frozen=True)
class ExplorationOptions:
    """How experience is gathered: what is tried beside the policy's actions."""

    noise: float = 0.1
    """Standard deviation of the Gaussian noise on actions at first, in units of half the action
    range."""
    noise_final: float = 0.05
    """What it decays to, linearly."""
    noise_steps: int = 100000
    """Environment steps that the decay takes; 0 decays nothing."""
    target_raise: float = 0.0
    """The return asked for is the best so far and this share of it more, and the one given until
    that is surpassed. 0 asks for that one for good; the paper's is 0.1."""
    hindsight: bool = kept(False)
    """Whether an episode's returns-to-go are relabelled at its end by what it did return."""


class Explorer:
    """N environments, the agent in them, and the books of both.

    Args:
        rows: the environments; the explorer closes none.
        count: N.
        options: how to act.
        target: the return to ask for at first.
        seed: of the first episode and of the noise; later episodes count on from it.
    """

    state: State

    def __init__(
        self, rows: Rows, count: int, options: ExplorationOptions, target: float, seed: int
    ):
        self.rows, self.everyone, self.options = rows, np.arange(count), options
        self.first_target, self.best = target, float("-inf")
        self.generator = torch.Generator().manual_seed(seed)
        self.steps, self.episodes, self.seed = 0, 0, seed
        self.table: EpisodeTable | None = None

    @property
    def target(self) -> float:
        """The return that the next episode asks for."""
        share = self.options.target_raise
        raised = self.best + share * abs(self.best)
        return max(self.first_target, raised) if share else self.first_target

    @property
    def noise(self) -> float:
        """The standard deviation of the noise now."""
        options = self.options
        progress = min(1.0, self.steps / options.noise_steps) if options.noise_steps else 0.0
        return options.noise + progress * (options.noise_final - options.noise)

    def act_as(self, policy: SequencePolicy, stored: StoredState) -> None:
        """Act with a policy as it is now; episodes under way keep their recurrent state."""
        self.actor, self.stored = Actor(policy), stored
        if self.table is None:
            self._begin()

    def step(self, replay: Replay, updates: int) -> list[float]:
        """One step of all environments into the replay; the returns of episodes that ended."""
        table = self.table
        assert table is not None, "act_as comes first"
        seen = table.time_step(self.everyone)
        before = self._kept_before(seen)
        action, self.state = self.actor.act(seen, self.state)
        taken = self._explore(action)
        outcome = self.rows.step(self.everyone, taken)
        check_outcome(outcome, self.steps)
        table.update(self.everyone, taken, outcome)
        self.kept = self.stored.keep(self.state, table.time_step(self.everyone))
        positions = replay.add(transition(seen, before, taken, outcome, self.kept, updates))
        for positions_of_row, position in zip(self.positions, positions, strict=True):
            positions_of_row.append(position)
        self.steps += len(self.everyone)
        return self._end(table, np.flatnonzero(~table.running), replay)

    def state_dict(self) -> dict[str, Any]:
        """What goes on after a checkpoint; episodes under way do not."""
        own = {name: getattr(self, name) for name in ("best", "steps", "episodes")}
        return own | {"noise": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with new episodes where `state_dict` was taken."""
        self.best, self.steps = float(state["best"]), state["steps"]
        self.episodes = state["episodes"]
        self.generator.set_state(state["noise"])
        self.table = None

    def _begin(self) -> None:
        count = len(self.everyone)
        self.table = EpisodeTable.begin(self.rows, [self.target] * count, self._seeds(count))
        self.state = self.actor.initial_state(count)
        self.kept = self.stored.keep(self.state, self.table.time_step(self.everyone))
        self.positions: list[list[Tensor]] = [[] for _ in self.everyone]

    def _kept_before(self, seen: TimeStep) -> Stored:
        if not seen.start.any():
            return self.kept
        new = self.stored.keep(self.actor.initial_state(len(self.everyone)), seen)
        return reset(self.kept, seen.start, new)

    def _seeds(self, count: int) -> list[int]:
        first = self.seed + self.episodes
        self.episodes += count
        return list(range(first, first + count))

    def _explore(self, action: Tensor) -> np.ndarray:
        if not action.isfinite().all():
            raise DivergedError(
                f"training diverged: the policy's action is not finite at step {self.steps}; "
                "lower --actor-learning-rate"
            )
        noise = self.noise * torch.randn(action.shape, generator=self.generator)
        space = self.rows.action_space
        assert isinstance(space, spaces.Box), "see check_continuous"
        noisy = disturbed(space, action, noise)
        alive = np.ones(len(self.everyone), bool)
        return environment_action(space, noisy, alive, self.steps)

    def _end(self, table: EpisodeTable, ended: np.ndarray, replay: Replay) -> list[float]:
        if not len(ended):
            return []
        returns = [float(r) for r in table.returns[ended]]
        for row in ended:
            if self.options.hindsight:
                residual = float(table.target[row] - table.returns[row])
                replay.relabel(torch.stack(self.positions[row]), residual)
            self.positions[row] = []
        self.best = max(self.best, *returns)
        table.target[ended] = self.target
        table.renew(ended, self.rows.reset(self._seeds(len(ended)), ended))
        return returns


def transition(
    seen: TimeStep, before: Stored, taken: np.ndarray, outcome: Outcome, after: Stored, updates: int
) -> Transition:
    """What a replay keeps of one step; `before` and `after` are kept of the states around it."""
    reward = as_tensor(outcome.reward)
    return Transition(
        seen.observation,
        seen.previous_action,
        seen.start,
        seen.return_to_go,
        before,
        as_tensor(taken),
        reward,
        torch.from_numpy(outcome.terminated),
        map_tree(as_tensor, outcome.observation),
        seen.return_to_go - reward,
        after,
        torch.full(reward.shape, updates),
    )
