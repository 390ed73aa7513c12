"""A trained policy in a loop of your own: one observation in, one action out.

player = Player.load("RUN", target_return=3600)
action = player.act(observation)                  # first step of an episode
action = player.act(observation, reward)          # each later one
player.reset()                                    # the next observation begins another
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.actor import Actor, Impl
from decision_s4.agents.flat_step import Acting
from decision_s4.envs.actions import environment_action, space_value
from decision_s4.envs.episode_table import EpisodeTable
from decision_s4.envs.errors import UserError
from decision_s4.envs.rows import Outcome
from decision_s4.envs.spaces import Tree, leaf_spaces, map_tree, space_tree
from decision_s4.envs.timestep import Agent, State

ROW, ALIVE, GOES_ON = np.zeros(1, np.int64), np.ones(1, bool), np.zeros(1, bool)


class Player:
    """Plays one episode after another as an evaluation does, and remembers in between.

    Args:
        agent: what acts.
        observation_space, action_space: what it acts on and how, as it was trained.
        target_return: the return to ask for; None for a policy that aims at none.
    """

    state: State
    taken: Tree  # the last action, in a batch of one

    def __init__(
        self,
        agent: Agent,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        target_return: float | None = None,
    ):
        self.agent, self.target_return = agent, target_return
        self.observation_space, self.action_space = observation_space, action_space
        self.reset()

    @classmethod
    def load(
        cls,
        run: str | Path,
        target_return: float | None = None,
        which: str = "best",
        impl: Impl | None = None,
    ) -> Self:
        """The policy of a run's folder.

        Args:
            run: the folder; config.yaml and a checkpoint's trainer.safetensors may be missing.
            target_return: held to the returns learned from, as in training; None: the first one
                that the run was evaluated with.
            which: the checkpoint: best, last or the number of a step.
            impl: what computes a step: "cpu", C++ for s4 and s4d, or "compiled" for other layers
                (see docs/backbones.md); None: as usual.

        Raises:
            UserError: where there is no such policy.
            ValueError: for an `impl` that is unknown or cannot act for it.
        """
        found = checkpoint.load(Path(run), which, with_trainer=False)
        policy, task = saved.rebuild(found), saved.task(found)
        target = task.target_returns[0] if target_return is None else target_return
        spaces = policy.observation_space, policy.action_space
        if impl is None:
            return cls(saved.agent_of(policy), *spaces, task.aim(target))
        if not isinstance(policy, Acting):
            raise UserError(
                f"impl '{impl}' is for policies of this project; leave it out for {run}"
            )
        return cls(Actor(policy, impl), *spaces, task.aim(target))

    def reset(self) -> None:
        """Forget: the next observation is the first of an episode."""
        self.table: EpisodeTable | None = None

    def act(self, observation: Any, reward: float = 0.0) -> Any:
        """The likeliest action, in the action space's own units.

        Args:
            observation: a value of the observation space.
            reward: of the step before. Less it, the return still to come is what is asked for next;
                where nobody counts rewards, all of the target is asked for at every step.

        Raises:
            UserError: for an observation of another shape, or an action that is no number.
        """
        seen = self._batch_of_one(observation)
        if self.table is None:
            self.table = EpisodeTable.of(seen, self.action_space, [self.target_return])
            self.state = self.agent.initial_state(1)
        else:
            outcome = Outcome(seen, np.array([reward], np.float64), GOES_ON, GOES_ON)
            self.table.update(ROW, self.taken, outcome)
        with torch.no_grad():
            step, time = self.table.time_step(ROW), int(self.table.lengths[0])
            action, self.state = self.agent.act(step, self.state, True)
        self.taken = environment_action(self.action_space, action, ALIVE, time)
        return space_value(self.action_space, map_tree(lambda leaf: leaf[0], self.taken))

    def _batch_of_one(self, observation: Any) -> Tree:
        def batched(space: spaces.Space, value: np.ndarray) -> np.ndarray:
            if value.shape != space.shape:
                raise UserError(f"an observation has shape {value.shape}; give {space.shape}")
            return value[None].astype(space.dtype)  # a copy: the books are written in place

        tree = space_tree(self.observation_space, observation)
        return map_tree(batched, leaf_spaces(self.observation_space), tree)
