"""Scores on a scale where a random policy has 0 and an expert 100."""

import math
import re
from dataclasses import dataclass

import numpy as np

from decision_s4.envs.errors import UserError

# (random, expert) returns a task, from REF_MIN_SCORE and REF_MAX_SCORE of d4rl/infos.py
# (https://github.com/Farama-Foundation/D4RL/blob/master/d4rl/infos.py, Apache-2.0).
# D4RL has one scale a task, whatever policy made the dataset.
D4RL_SCORES: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "kitchen": (0.0, 4.0),
    "antmaze": (0.0, 1.0),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "minigrid-fourrooms": (0.01442, 2.89685),
    "flow-ring": (-165.22, 24.42),
    "flow-merge": (118.67993, 330.03179),
    "carla-lane": (-0.8503839912088142, 1023.5784385429523),
    "carla-town": (-114.81579500772153, 2440.1772022247314),
    "bullet-halfcheetah": (-1275.766996, 2381.6725),
    "bullet-hopper": (20.058972, 1441.8059623430963),
    "bullet-ant": (373.705955, 2650.495),
    "bullet-walker2d": (16.523877, 1623.6476303317536),
    "bullet-maze2d-open": (8.75, 64.15),
    "bullet-maze2d-umaze": (32.46, 153.99),
    "bullet-maze2d-medium": (14.87, 238.05),
    "bullet-maze2d-large": (1.82, 285.92),
}

# (random, solved) returns of Gymnasium's MuJoCo tasks that D4RL lacks; Minari's mujoco/* sets store
# none. Random: means of 100 episodes here, Swimmer of 30. Solved: the reward_threshold under which
# Gymnasium registers the task (v5); Humanoid, which has none, by the TQC agent of
# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md.
MUJOCO_SCORES: dict[str, tuple[float, float]] = {
    "invertedpendulum": (4.83, 950.0),
    "inverteddoublependulum": (44.293, 9100.0),
    "reacher": (-43.422, -3.75),
    "pusher": (-148.538, 0.0),
    "swimmer": (-1.873, 360.0),
    "humanoid": (111.486, 7239.32),
}

# Decision Transformer's evaluation targets (Chen et al. 2021, as in its published code).
TARGET_RETURNS: dict[str, tuple[float, float]] = {
    "hopper": (3600.0, 1800.0),
    "halfcheetah": (12000.0, 6000.0),
    "walker2d": (5000.0, 2500.0),
}


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that score 0 (`minimum`) and 100 (`maximum`), and whose scale that is.

    Raises UserError unless both are finite and `minimum` < `maximum`.
    """

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.maximum - self.minimum) and self.minimum < self.maximum):
            raise UserError(
                f"{self.source} has reference scores ({self.minimum}, {self.maximum}); "
                "give two finite returns, the lower first"
            )

    def describe(self) -> str:
        """One line to print beside any table of scores."""
        return f"{self.source}: 0 = {self.minimum:.2f} (random), 100 = {self.maximum:.2f} (expert)"


def reference_scores(
    name: str,
    metadata_scores: tuple[float, ...] | None = None,
    user_scores: tuple[float, ...] | None = None,
) -> ReferenceScores | None:
    """The scale for an environment id or dataset id; None where none is known.

    `user_scores`, a person's own (random, expert) returns, go before `metadata_scores`, those
    stored with the dataset, these before D4RL's table, and this before that of Gymnasium's tasks.
    """
    if user_scores is not None:
        return _scale(user_scores, "given scale")
    if metadata_scores is not None:
        return _scale(metadata_scores, "the dataset's own scale")
    if task := d4rl_task(name):
        return _scale(D4RL_SCORES[task], f"D4RL scale {task}")
    task = mujoco_task(name)
    return _scale(MUJOCO_SCORES[task], f"our scale {task}") if task else None


def _scale(scores: tuple[float, ...], source: str) -> ReferenceScores:
    try:
        minimum, maximum = map(float, scores)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source} has reference scores {scores!r}; give two finite returns, the lower first"
        ) from error
    return ReferenceScores(minimum, maximum, source)


def normalized_score(returns: float | np.ndarray, reference: ReferenceScores) -> float | np.ndarray:
    """100 (R − minimum) / (maximum − minimum)."""
    return 100.0 * (returns - reference.minimum) / (reference.maximum - reference.minimum)


def default_target_returns(env_id: str) -> tuple[float, float] | None:
    """Decision Transformer's targets for an environment; None where it was not evaluated.

    Then a dataset's best return and half of it are a fair choice.
    """
    return TARGET_RETURNS.get(d4rl_task(env_id) or "")


def mujoco_task(name: str) -> str | None:
    """Key into MUJOCO_SCORES of `Swimmer-v5` or `mujoco/swimmer/medium-v0`; None for others."""
    *folders, last = re.sub(r"-v\d+$", "", name.lower()).split("/")
    task = folders[-1] if folders else last
    return task if task in MUJOCO_SCORES else None


def d4rl_task(name: str) -> str | None:
    """Key into D4RL_SCORES of an environment id or dataset id, if the task is one of D4RL's.

    Knows `Hopper-v5`, `AdroitHandDoor-v1`, `hopper-medium-v2`, `mujoco/hopper/medium-v0`. Not
    gymnasium-robotics' mazes: their rewards and time limits are not those of D4RL's.
    """
    *folders, last = re.sub(r"-v\d+$", "", name.lower()).split("/")
    if folders:
        return folders[-1] if folders[-1] in D4RL_SCORES and folders[-1] != "antmaze" else None
    words = last.removeprefix("adroithand").removeprefix("franka").split("-")
    prefixes = ("-".join(words[:n]) for n in range(len(words), 0, -1))
    return next((prefix for prefix in prefixes if prefix in D4RL_SCORES), None)
