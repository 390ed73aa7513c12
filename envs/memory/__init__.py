"""Tasks that need memory, registered with Gymnasium; many rows of one are stepped as arrays.

`gym.make` gives one environment, `batch_rows` the same task as arrays, episode for episode.
"""

from functools import partial
from typing import Any

import gymnasium as gym

from decision_s4.envs.memory.batch import Batch, BatchEnv, BatchRows
from decision_s4.envs.memory.cards import CountRecall, RepeatFirst, RepeatPrevious
from decision_s4.envs.memory.control import CartPole, MountainCar, Pendulum
from decision_s4.envs.memory.masked import POSITIONS, without_velocity
from decision_s4.envs.memory.pixels import cart_pole
from decision_s4.envs.memory.tmaze import TMaze

TASKS: dict[str, type[Batch]] = {
    "TMaze-v0": TMaze,
    "RepeatFirst-v0": RepeatFirst,
    "RepeatPrevious-v0": RepeatPrevious,
    "CountRecall-v0": CountRecall,
}
"""Tasks that exist as arrays alone."""
CONTROL: dict[str, type[Batch]] = {
    "CartPoleNoVel-v1": CartPole,
    "PendulumNoVel-v1": Pendulum,
    "MountainCarContinuousNoVel-v0": MountainCar,
}
"""Gymnasium's environments without velocities, as arrays."""


def register() -> None:
    """Make the ids known to `gym.make`; a second call changes nothing."""
    for name, task in TASKS.items():
        _register(name, partial(BatchEnv, task))
    for base in POSITIONS:
        kind, version = base.split("-")
        _register(f"{kind}NoVel-{version}", partial(without_velocity, base))
    _register("CartPolePixels-v1", cart_pole)


def _register(name: str, entry_point: Any) -> None:
    if name not in gym.registry:
        gym.register(name, entry_point=entry_point)


def batch_rows(env_id: str, count: int, **options: Any) -> BatchRows | None:
    """`count` rows of a task as arrays; None for one that has no such form."""
    if env_id in CONTROL and not options:
        return BatchRows(CONTROL[env_id](count))
    return BatchRows(TASKS[env_id](count, **options)) if env_id in TASKS else None
