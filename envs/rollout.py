"""Whole episodes of many environments in lockstep: one call of the policy a time step for all.

Evaluation, video and data collection share this loop. B rows are in the policy's batch, of which
some have finished; a finished row's environment is not stepped, its answers are ignored.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from decision_s4.envs import memory
from decision_s4.envs.actions import environment_action
from decision_s4.envs.episode_table import EpisodeTable
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make, registered_spec
from decision_s4.envs.rows import Rows, check_outcome
from decision_s4.envs.scores import ReferenceScores, reference_scores
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.statistics import Evaluation
from decision_s4.envs.timestep import Agent, State, rows_of
from decision_s4.envs.worker_rows import make_rows

LOG = logging.getLogger(__name__)

LONGEST_EPISODE = 30_000
"""Steps after which an episode without a time limit of its own is cut short: more than Atari's
27,000, and an environment that never ends does not keep a rollout for ever."""


class Transition(NamedTuple):
    """One step of the n rows that took it; trees of arrays in the environment's own types."""

    time: int  # steps taken before this one
    rows: np.ndarray  # (n,) int64, which episodes
    observation: Tree  # (n, …)
    action: Tree  # (n, …) as the environment took it
    reward: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    next_observation: Tree  # (n, …) an ending episode's own last observation, no reset


Recorder = Callable[[Transition], None]
Progress = Callable[[int, int], None]  # (steps taken, episodes still running)


@dataclass(frozen=True)
class Episodes:
    """What became of N episodes."""

    returns: np.ndarray  # (N,) float64, undiscounted
    lengths: np.ndarray  # (N,) int64, steps
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool, by the environment or by `max_steps`


def rollout(
    agent: Agent,
    env_id: str,
    target_returns: Sequence[float | None],
    seeds: Sequence[int],
    env_kwargs: dict[str, Any] | None = None,
    max_steps: int | None = None,
    workers: int | None = None,
    deterministic: bool = True,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> Episodes:
    """Play one episode a row; row i aims at `target_returns[i]` and is reset with `seeds[i]`.

    A deterministic agent's episode i depends on nothing but its target and seed, up to rounding:
    neither on the other rows nor on `workers`, the number of processes that step environments
    (None: by rows and cores; 1: this process). `max_steps` cuts episodes short, as truncated;
    without it an environment's own limit does, or else LONGEST_EPISODE, and a warning says so.
    A target of None counts as 0, for agents that have none. Raises UserError for an unknown
    environment or a non-finite action, SimulatorError where one fails.
    """
    _check(target_returns, seeds, max_steps, workers)
    rows = open_rows(env_id, len(seeds), env_kwargs, workers)
    limit = max_steps or (None if _has_limit(env_id, env_kwargs or {}) else LONGEST_EPISODE)
    try:
        played = play(agent, rows, target_returns, seeds, limit, deterministic, progress, recorder)
    finally:
        rows.close()
    if max_steps is None:
        _tell_of_cut(env_id, played, limit)
    return played


def _has_limit(env_id: str, env_kwargs: dict[str, Any]) -> bool:
    """Whether Gymnasium ends its episodes in time; tasks that exist as arrays alone always end."""
    steps = env_kwargs.get("max_episode_steps", registered_spec(env_id).max_episode_steps)
    return env_id in memory.TASKS or (steps is not None and steps > 0)


def _tell_of_cut(env_id: str, played: Episodes, limit: int | None) -> None:
    cut = int((played.truncated & (played.lengths == limit)).sum())
    if cut and limit is not None:
        LOG.warning(
            "environment '%s' has no time limit: %d of %d episodes went on for %d steps and were "
            "cut there; register it with max_episode_steps",
            *(env_id, cut, len(played.lengths), limit),
        )


def open_rows(
    env_id: str,
    count: int,
    env_kwargs: dict[str, Any] | None = None,
    workers: int | None = None,
) -> Rows:
    """`count` rows of an environment: stepped as arrays where the task has that form.

    Raises UserError for an environment that is unknown or cannot be made.
    """
    registered_spec(env_id)
    options = env_kwargs or {}
    as_arrays = memory.batch_rows(env_id, count, **options)
    return as_arrays or make_rows(functools.partial(make, env_id, **options), count, workers)


def evaluate(
    agent: Agent,
    env_id: str,
    target_returns: Sequence[float | None] = (3600.0, 1800.0),
    episodes: int = 20,
    seed: int = 0,
    reference: ReferenceScores | None = None,
    **options: Any,
) -> list[Evaluation]:
    """`episodes` episodes for each target return, all in one lockstep batch.

    Episode i is reset with `seed + i` whatever the target, so targets meet the same starts.
    `reference` is the scale of the scores; without it that of D4RL, if it knows the environment.
    `options` are rollout's.
    """
    if episodes < 1 or not target_returns:
        raise UserError(f"{episodes} episodes, targets {list(target_returns)}; give one or more")
    targets = [target for target in target_returns for _ in range(episodes)]
    seeds = [seed + i for _ in target_returns for i in range(episodes)]
    played = rollout(agent, env_id, targets, seeds, **options)
    reference = reference or reference_scores(env_id)
    returns, lengths = (x.reshape(-1, episodes) for x in (played.returns, played.lengths))
    return [
        Evaluation(*each, reference) for each in zip(target_returns, returns, lengths, strict=True)
    ]


def play(
    agent: Agent,
    rows: Rows,
    target_returns: Sequence[float | None],
    seeds: Sequence[int],
    max_steps: int | None = None,
    deterministic: bool = True,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
) -> Episodes:
    """`rollout` on environments already made, which stay open."""
    table = EpisodeTable.begin(rows, target_returns, seeds)
    batch = np.arange(len(seeds))  # (B,) the rows in the policy's batch
    state = agent.initial_state(len(batch))
    time = 0
    while table.running.any():
        with torch.no_grad():
            action, state = agent.act(table.time_step(batch), state, deterministic)
        alive = table.running[batch]
        action = environment_action(rows.action_space, action, alive, time)
        stepped = batch[alive]
        outcome = rows.step(stepped, action)
        check_outcome(outcome, time)
        time += 1
        if time == max_steps:
            outcome = outcome._replace(truncated=outcome.truncated | ~outcome.terminated)
        if recorder:
            before = map_tree(lambda leaf, i=stepped: leaf[i], table.observation)
            recorder(Transition(time - 1, stepped, before, action, *outcome[1:], outcome[0]))
        table.update(stepped, action, outcome)
        batch, state = _drop_finished(table.running[batch], batch, state)
        if progress:
            progress(time, int(table.running.sum()))
    return Episodes(table.returns, table.lengths, table.terminated, table.truncated)


def _check(
    target_returns: Sequence[float | None],
    seeds: Sequence[int],
    max_steps: int | None,
    workers: int | None,
) -> None:
    if not len(seeds) == len(target_returns) > 0:
        raise UserError(
            f"{len(target_returns)} target returns for {len(seeds)} seeds; give one of each a row"
        )
    if min(seeds) < 0:
        raise UserError(f"seed {min(seeds)} is negative; give 0 or more")
    for target in target_returns:
        if target is not None and not math.isfinite(target):
            raise UserError(f"target return {target} is not finite; give a number or none")
    for name, number in {"max_steps": max_steps, "workers": workers}.items():
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}; give 1 or more, or none")


def _drop_finished(
    running: np.ndarray, batch: np.ndarray, state: State
) -> tuple[np.ndarray, State]:
    """Once fewer than half of the policy's rows run, go on with those alone."""
    if not 0 < running.sum() < len(batch) / 2:
        return batch, state
    keep = np.flatnonzero(running)
    return batch[keep], rows_of(state, keep)
