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
    metadata_scores: tuple[float, float] | None = None,
    user_scores: tuple[float, float] | None = None,
) -> ReferenceScores | None:
    """The scale for an environment id or dataset id; None where none is known.

    `user_scores`, a person's own (random, expert) returns, go before `metadata_scores`, those
    stored with the dataset, and these before D4RL's table.
    """
    if user_scores is not None:
        return _scale(user_scores, "given scale")
    if metadata_scores is not None:
        return _scale(metadata_scores, "the dataset's own scale")
    task = d4rl_task(name)
    return _scale(D4RL_SCORES[task], f"D4RL scale {task}") if task else None


def _scale(scores: tuple[float, float], source: str) -> ReferenceScores:
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
