"""Random windows of K steps: what Decision Transformer trains on.

Shapes: B rows, one window each, K steps.
"""

from collections.abc import Iterator

import numpy as np

from decision_s4.envs.sampler import NumberedBatches, check_at_least
from decision_s4.envs.steps import Batch, Steps
from decision_s4.envs.trajectories import Trajectories


class WindowBatches(NumberedBatches):
    """Endless batches of `rows` windows of `window_steps` steps, the first of each a `start`.

    A window begins at any step of the data with the same probability: an episode is drawn in
    proportion to its length, then a step in it (arXiv 2106.01345). At an episode's end the window
    is shorter, and padding follows it. Timesteps and returns-to-go stay those of the episode.
    Batch i is a function of (seed, i). `episodes` are the numbers of those to draw from, None all.
    `share` (i, n) takes every n-th window from the i-th on.

    Raises:
        UserError: for a number of steps or rows below 1, or a negative seed.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        window_steps: int,
        rows: int,
        seed: int,
        episodes: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        super().__init__(seed)
        check_at_least("window_steps", window_steps, 1)
        check_at_least("rows", rows, 1)
        self.window_steps, self.rows, self.share = window_steps, rows, share
        self.steps = Steps(trajectories, episodes)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        number = self.next_generator().integers(self.steps.counts[-1], size=self.rows)
        return self.windows(self.steps.locate(number[self.share[0] :: self.share[1]])[0])

    def windows(self, first: np.ndarray) -> Batch:
        """The windows that begin at the steps `first` (B,) of the data."""
        offsets = self.steps.offsets
        episode = np.searchsorted(offsets, first, side="right") - 1
        places = first[:, None] + np.arange(self.window_steps)  # (B, K)
        valid = places < offsets[episode + 1][:, None]
        episode = np.broadcast_to(episode[:, None], valid.shape)[valid]
        return self.steps.batch(places[valid], episode, (places == first[:, None])[valid], valid)
