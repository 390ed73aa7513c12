"""Batches of single transitions, for learners of values. Shapes: B transitions."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

from decision_s4.envs.errors import UserError
from decision_s4.envs.sampler import NumberedBatches, check_at_least
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.steps import Steps
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Transitions:
    """Tensors of one batch, in the types of envs/tensors.py."""

    observation: Tree  # (B, …)
    action: Tree  # (B, …)
    reward: torch.Tensor  # (B,)
    next_observation: Tree  # (B, …) what the action led to
    terminated: torch.Tensor  # (B,) bool; a truncated episode's value goes on

    @property
    def valid(self) -> torch.Tensor:
        """(B,) bool: all of them."""
        return torch.ones_like(self.terminated)

    def to(self, device: torch.device | str) -> "Transitions":
        """The batch on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Transitions(**map_tree(lambda leaf: leaf.to(device, non_blocking=True), parts))


class TransitionBatches(NumberedBatches):
    """Endless batches of `size` transitions, each drawn from all with the same probability.

    Batch i is a function of (seed, i). `episodes` are the numbers of those to draw from, None all.
    Where the data lacks the observation after an episode's last action, that transition is
    left out unless it terminates, since its value then does not matter.

    Raises:
        UserError: for a size below 1, a negative seed, or data without a single usable transition.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        size: int,
        seed: int,
        episodes: np.ndarray | None = None,
    ):
        super().__init__(seed)
        check_at_least("batch_steps", size, 1)
        self.size = size
        self.trajectories, self.steps = trajectories, Steps(trajectories, episodes)
        self.ends_known = trajectories.final_observation_known
        if not self.ends_known and not (self.steps.lengths[self.steps.episodes] > 1).any():
            raise UserError(f"{trajectories.name} has no transition with both observations")

    def __iter__(self) -> Iterator[Transitions]:
        return self

    def __next__(self) -> Transitions:
        return self.transitions(*self.draw())

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(step, episode) of the next batch's transitions, (B,) both."""
        draw = self.next_generator()
        step, episode = self._draw(draw, self.size)
        while not (self.ends_known or (kept := self._known(step, episode)).all()):
            step[~kept], episode[~kept] = self._draw(draw, int((~kept).sum()))
        return step, episode

    def usable(self) -> tuple[np.ndarray, np.ndarray]:
        """(step, episode) of every transition that may be drawn."""
        step, episode = self.steps.locate(np.arange(self.steps.counts[-1]))
        kept = slice(None) if self.ends_known else self._known(step, episode)
        return step[kept], episode[kept]

    def transitions(self, step: np.ndarray, episode: np.ndarray) -> Transitions:
        """Those of the steps numbered `step` (B,), of `episode` (B,)."""
        steps, row = self.steps, step + episode  # each earlier episode has one row more
        return Transitions(
            observation=map_tree(lambda leaf: as_tensor(leaf[row]), steps.observations),
            action=map_tree(lambda leaf: as_tensor(leaf[step]), steps.actions),
            reward=as_tensor(steps.rewards[step]),
            next_observation=map_tree(lambda leaf: as_tensor(leaf[row + 1]), steps.observations),
            terminated=as_tensor(steps.terminations[step]),
        )

    def _draw(self, draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self.steps.locate(draw.integers(self.steps.counts[-1], size=count))

    def _known(self, step: np.ndarray, episode: np.ndarray) -> np.ndarray:
        last = step + 1 == self.steps.offsets[episode + 1]
        return ~last | self.steps.terminations[step]
