"""Logged steps as tensors: what samplers gather their batches from. Shapes: B rows, T steps."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from decision_s4.envs.frames import Frames
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of one batch, in the types of envs/tensors.py."""

    observation: Tree  # (B, T, …)
    previous_action: Tree  # (B, T, …), zero where `start`
    return_to_go: torch.Tensor  # (B, T) undiscounted R_t
    action: Tree  # (B, T, …) taken on that observation
    reward: torch.Tensor  # (B, T)
    timestep: torch.Tensor  # (B, T) int64, counted from 0 in each episode
    terminated: torch.Tensor  # (B, T) bool, the episode's state ended it after that step
    start: torch.Tensor  # (B, T) bool, first step of an episode or window
    valid: torch.Tensor  # (B, T) bool, False on padding, where all else is zero

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**map_tree(lambda leaf: leaf.to(device, non_blocking=True), parts))


class Steps:
    """All steps of a dataset as flat arrays, from which the batches of every sampler are gathered.

    Shapes: S steps of a batch, in the order of its valid places.

    Args:
        trajectories: the dataset.
        episodes: the numbers of those episodes that samplers may draw from, ascending; None: all.
    """

    def __init__(self, trajectories: Trajectories, episodes: np.ndarray | None = None):
        self.observations = map_tree(_as_it_is, trajectories.observations)
        self.actions = map_tree(np.asarray, trajectories.actions)
        self.rewards = np.asarray(trajectories.rewards)
        self.terminations = np.asarray(trajectories.terminations)
        self.returns_to_go = trajectories.returns_to_go().astype(np.float32)
        self.lengths = np.asarray(trajectories.lengths)
        self.offsets = trajectories.action_offsets
        everyone = np.arange(trajectories.num_episodes)
        self.episodes = everyone if episodes is None else np.asarray(episodes)
        self.counts = np.cumsum(self.lengths[self.episodes])  # (E,) steps up to each one's end

    def locate(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(step, episode) of the steps that are number 0, 1, … of those to draw from."""
        place = np.searchsorted(self.counts, number, side="right")
        episode = self.episodes[place]
        return self.offsets[episode + 1] - (self.counts[place] - number), episode

    def batch(
        self, step: np.ndarray, episode: np.ndarray, start: np.ndarray, valid: np.ndarray
    ) -> Batch:
        """The steps numbered `step` (S,), of `episode` (S,), at the valid places (B, T).

        No action precedes the steps where `start` (S,) is True.
        """
        row_step = step + episode  # each earlier episode has one row of observations more
        before = np.where(start, step, step - 1)
        return Batch(
            observation=map_tree(lambda leaf: _place(leaf[row_step], valid), self.observations),
            previous_action=map_tree(
                lambda leaf: _place(_cleared(leaf[before], start), valid), self.actions
            ),
            return_to_go=_place(self.returns_to_go[step], valid),
            action=map_tree(lambda leaf: _place(leaf[step], valid), self.actions),
            reward=_place(self.rewards[step], valid),
            terminated=_place(self.terminations[step], valid),
            timestep=_place(step - self.offsets[episode], valid),
            start=_place(start, valid),
            valid=torch.from_numpy(valid),
        )


def _as_it_is(leaf: np.ndarray | Frames) -> np.ndarray | Frames:
    """A plain view of a memory map, which is indexed sooner; images stay compressed."""
    return leaf if isinstance(leaf, Frames) else np.asarray(leaf)


def _cleared(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    values[where] = 0
    return values


def _place(values: np.ndarray, valid: np.ndarray) -> torch.Tensor:
    """Values of consecutive steps (S, …) at the valid places of (B, T, …), zero elsewhere."""
    if valid.all():
        placed = values.reshape(*valid.shape, *values.shape[1:])
    else:
        placed = np.zeros((*valid.shape, *values.shape[1:]), values.dtype)
        placed[valid] = values
    return as_tensor(placed)
