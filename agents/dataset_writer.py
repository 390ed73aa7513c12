"""Episodes into a Minari dataset, with lines for a person on how far it is and what it is worth."""

from collections.abc import Iterator

import numpy as np

from decision_s4.envs.dataset_sources import minari_root
from decision_s4.envs.minari_writer import Description, write_dataset
from decision_s4.envs.trajectories import Episode


def write(about: Description, episodes: Iterator[Episode], steps: int) -> None:
    """Write them, some `steps` steps in all. Raises UserError where that is impossible."""
    quality = write_dataset(_shown(about.dataset_id, episodes, steps), about)
    print(f"{about.dataset_id}: {quality.describe(about.reference)}")
    print(f"  scale  {about.reference.describe() if about.reference else 'none is known'}")
    print(f"  under  {minari_root()}", flush=True)


def _shown(name: str, episodes: Iterator[Episode], steps: int) -> Iterator[Episode]:
    """The episodes, with a line each time another quarter of `steps` is there."""
    done, returns = 0, []
    for episode in episodes:
        before, done = done, done + len(episode.rewards)
        returns.append(float(episode.rewards.sum()))
        if 4 * done // steps > 4 * before // steps:
            print(f"  {name}: {done:,} steps, mean return {np.mean(returns):.1f}", flush=True)
        yield episode
