"""Episodes of any Agent, as it plays them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from decision_s4.envs.rollout import Transition, rollout
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Episode


class Recorder:
    """Takes a rollout's transitions and gives back its episodes; rows that all ended, please."""

    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    def __call__(self, transition: Transition) -> None:
        self.transitions.append(transition)

    def episodes(self) -> Iterator[Episode]:
        """Each row's episode, in the order of rows."""
        row = np.concatenate([t.rows for t in self.transitions])
        order = np.argsort(row, kind="stable")
        flat = {
            name: map_tree(
                lambda *leaves: np.concatenate(leaves)[order],
                *(getattr(t, name) for t in self.transitions),
            )
            for name in Transition._fields
            if name not in ("time", "rows")
        }
        ends = np.flatnonzero(np.diff(row[order], append=-1)) + 1
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            yield _episode(flat, slice(first, last))


def _episode(flat: dict[str, Tree], steps: slice) -> Episode:
    part = {n: map_tree(lambda leaf: leaf[steps], tree) for n, tree in flat.items()}
    observations = map_tree(
        lambda before, after: np.concatenate([before, after[-1:]]),
        part["observation"],
        part["next_observation"],
    )
    ends = part["terminated"], part["truncated"]
    return Episode(observations, part["action"], part["reward"], *ends)


def sample_episodes(
    agent: Agent,
    env_id: str,
    steps: int,
    seed: int,
    target_return: float | None = None,
    deterministic: bool = False,
    rows: int = 16,
    **options: Any,
) -> Iterator[Episode]:
    """Whole episodes of an agent until they hold `steps` steps at least, `rows` in lockstep.

    Episode i is reset with `seed + i`; `options` are rollout's. Agents that draw actions draw from
    torch's generator.
    """
    done = number = 0
    while done < steps:
        recorder, seeds = Recorder(), range(seed + number, seed + number + rows)
        targets = [target_return] * rows
        rollout(
            agent,
            env_id,
            targets,
            list(seeds),
            deterministic=deterministic,
            recorder=recorder,
            **options,
        )
        for episode in recorder.episodes():
            if done < steps:
                done += len(episode.rewards)
                yield episode
        number += rows
