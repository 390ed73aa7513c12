"""A training run as train.py sees it, whatever it learns from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from decision_s4.agents.distributed import World
from decision_s4.agents.options import RunOptions
from decision_s4.envs.task import Task

Row = dict[str, float | None]


class Run(Protocol):
    """What learns, what it learns from, and where it stands."""

    step: int
    """Updates of the weights so far; where it learns in an environment, steps taken there."""
    world: World
    """The processes that train together."""
    task: Task
    """Where it is evaluated."""
    rate_tag: str
    """The curve of environment steps a second that it learns from."""

    @property
    def config(self) -> RunOptions:
        """Its settings."""
        ...

    @property
    def finished(self) -> bool:
        """Whether all of `config.steps` are done."""
        ...

    @property
    def update_steps(self) -> int:
        """Steps of one update."""
        ...

    @property
    def total_steps(self) -> int:
        """The step at which it is finished: `config.steps`, or the end of an update beyond."""
        ...

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        ...

    def update(self) -> tuple[Mapping[str, Tensor], int]:
        """Learn once: scalars, and how many environment steps they are from.

        A name with a slash is a tag of its own, any other goes below train/. Raises UserError
        where training diverged.
        """
        ...

    def evaluate(self) -> list[Row]:
        """Rows of eval.csv; none without an environment."""
        ...

    def explain(self, logger: Any) -> None:
        """Log what the settings' probes tell of the policy, if they ask for any."""
        ...

    def save(self, run_dir: Path, score: float | None = None) -> None:
        """Write a checkpoint; `score` decides whether it is the best."""
        ...

    def restore(self, run_dir: Path) -> None:
        """Go on where the last checkpoint stands. Raises UserError for a foreign one."""
        ...

    def introduction(self) -> list[str]:
        """Lines for a person at the beginning."""
        ...

    def conclusion(self, run_dir: Path) -> list[str]:
        """Lines for a person at the end: where the weights are, and what to do with them."""
        ...

    def draw(self, logger: Any, run_dir: Path) -> None:
        """Videos and pictures of the last policy."""
        ...

    def close(self) -> None:
        """Free the environments that it learns in, if any."""
        ...
