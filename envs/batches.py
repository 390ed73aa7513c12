"""Batches of whole logged episodes laid end to end, without padding.

Shapes: B rows, T steps.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from decision_s4.envs.errors import UserError
from decision_s4.envs.sampler import check_at_least, check_keys
from decision_s4.envs.steps import Batch, Steps
from decision_s4.envs.trajectories import Trajectories


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
        check_keys(state, self.state_dict())
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


def nothing_of(batch: Batch) -> Batch:
    """The batch with no step valid."""
    return replace(batch, valid=torch.zeros_like(batch.valid))
