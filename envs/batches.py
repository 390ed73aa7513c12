"""Batches of logged steps, and those of whole episodes laid end to end, without padding.

Shapes: B rows, T steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from decision_s4.envs.errors import UserError
from decision_s4.envs.frames import Frames
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of one batch. Floats are float32, integers int64, bytes (images) stay uint8."""

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


class PackedBatches:
    """Endless batches of at least `batch_steps` steps of whole episodes.

    Each epoch shuffles the episodes and takes consecutive ones until they hold `batch_steps`
    steps; every step comes exactly once an epoch. A remainder below half a batch joins the last.
    One row holds them end to end. With more rows, each takes its own consecutive run, and shorter
    rows end in padding. The order is a function of (seed, epoch): see state_dict. `episodes` are
    the numbers of those to draw from, None all. `share` (i, n) takes every n-th episode of a batch
    from the i-th on, or one without valid steps where a batch has too few.
    """

    position: int  # in the epoch's order of episodes
    order: np.ndarray

    def __init__(
        self,
        trajectories: Trajectories,
        batch_steps: int,
        seed: int,
        rows: int = 1,
        episodes: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        check_at_least("batch_steps", batch_steps, 1)
        check_at_least("seed", seed, 0)
        check_at_least("rows", rows, 1)
        self.batch_steps, self.rows, self.seed, self.share = batch_steps, rows, seed, share
        self.steps = Steps(trajectories, episodes)
        self._begin(epoch=0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.position == len(self.order):
            self._begin(self.epoch + 1)
        first, self.position = self.position, self._end_of_batch()
        episodes = self.order[first : self.position]
        mine = episodes[self.share[0] :: self.share[1]]
        return self._batch(mine) if len(mine) else nothing_of(self._batch(episodes[:1]))

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: the next batch after loading this is the one due now."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state_dict. Raises UserError if it is not one of this dataset's."""
        if set(state) != set(self.state_dict()):
            raise UserError(f"sampler state has the keys {sorted(state)}; use a state_dict()")
        if not 0 <= state["position"] <= len(self.steps.episodes):
            raise UserError(
                f"sampler state is at episode {state['position']} of {len(self.steps.episodes)}; "
                "resume with the dataset it was saved with"
            )
        self.seed = state["seed"]
        self._begin(state["epoch"])
        self.position = state["position"]

    def _begin(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        self.order = np.random.default_rng([self.seed, epoch]).permutation(self.steps.episodes)
        self.ends = np.cumsum(self.steps.lengths[self.order])

    def _end_of_batch(self) -> int:
        """Position after the last episode of the batch that begins at `position`."""
        done = self.ends[self.position - 1] if self.position else 0
        end = int(np.searchsorted(self.ends, done + self.batch_steps)) + 1
        if end >= len(self.order) or self.ends[-1] - self.ends[end - 1] < self.batch_steps / 2:
            return len(self.order)
        return end

    def _batch(self, episodes: np.ndarray) -> Batch:
        lengths = self.steps.lengths[episodes]
        timestep = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        step = np.repeat(self.steps.offsets[episodes], lengths) + timestep
        episode = np.repeat(episodes, lengths)
        return self.steps.batch(step, episode, timestep == 0, self._layout(lengths))

    def _layout(self, lengths: np.ndarray) -> np.ndarray:
        """(B, T) bool: which places hold a step; episodes fill the rows evenly, one run a row."""
        ends = np.cumsum(lengths)
        row = (ends - lengths / 2) * self.rows // ends[-1]  # an episode goes where its middle lies
        row_steps = np.bincount(row.astype(np.int64), lengths, minlength=self.rows)
        return np.arange(row_steps.max()) < row_steps[:, None]


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise UserError for a `value` below `least`."""
    if value < least:
        raise UserError(f"{name} is {value}; use {least} or more")


def nothing_of(batch: Batch) -> Batch:
    """The batch with no step valid."""
    return replace(batch, valid=torch.zeros_like(batch.valid))


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """Floats as float32, bytes and truth values as they are, other integers as int64."""
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float32, copy=False)
    elif values.dtype not in (np.uint8, np.bool_):
        values = values.astype(np.int64, copy=False)
    return torch.from_numpy(values)


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
