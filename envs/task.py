"""Where a policy is evaluated: an environment, the returns to ask for, the scale of scores."""

from dataclasses import dataclass, field
from typing import Any

from decision_s4.envs.errors import UserError
from decision_s4.envs.make import check_compatible, make
from decision_s4.envs.rollout import evaluate
from decision_s4.envs.scores import ReferenceScores, default_target_returns, reference_scores
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True)
class Task:
    """An evaluation's environment; `env_id` None where there is none to evaluate in."""

    env_id: str | None
    target_returns: tuple[float, ...]
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    reference: ReferenceScores | None = None

    def evaluate(self, agent: Agent, episodes: int, seed: int) -> list[dict[str, float | None]]:
        """`episodes` episodes for each target, as rows of eval.csv; none without environment."""
        if self.env_id is None:
            return []
        evaluations = evaluate(
            agent,
            self.env_id,
            self.target_returns,
            episodes,
            seed,
            reference=self.reference,
            env_kwargs=self.env_kwargs,
        )
        return [evaluation.row() for evaluation in evaluations]

    def summary(self) -> str:
        """One line for a person."""
        if self.env_id is None:
            return "no environment: trains without evaluation"
        targets = ", ".join(f"{target:g}" for target in self.target_returns)
        scale = self.reference.describe() if self.reference else "no reference scores"
        return f"{self.env_id}, target returns {targets}; {scale}"

    def describe(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; `Task.from_description` reads them."""
        scale = self.reference
        return {
            "env_id": self.env_id,
            "target_returns": list(self.target_returns),
            "env_kwargs": self.env_kwargs,
            "reference": [scale.minimum, scale.maximum, scale.source] if scale else None,
        }

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> "Task":
        """The task that `describe` wrote."""
        scale = values["reference"]
        return cls(
            values["env_id"],
            tuple(values["target_returns"]),
            values["env_kwargs"],
            ReferenceScores(*scale) if scale else None,
        )


def task_of(
    trajectories: Trajectories, env_id: str | None = None, target_returns: tuple[float, ...] = ()
) -> Task:
    """The task a dataset was recorded in; `env_id` ('none' for no environment) overrides its own.

    Without `target_returns`, the task's usual ones, or the dataset's best return and half of it.

    Raises:
        UserError: for an environment that is not registered or does not fit the data.
    """
    own = trajectories.env_id
    chosen = env_id or own
    if chosen in (None, "none"):
        return Task(None, tuple(target_returns))
    kwargs = trajectories.env_kwargs if chosen == own else {}
    env = make(chosen, **kwargs)
    try:
        check_compatible(env, trajectories.observation_space, trajectories.action_space)
    finally:
        env.close()
    scale = reference_scores(chosen, trajectories.reference_scores)
    usual = target_returns or default_target_returns(chosen) or _from_data(trajectories)
    return Task(chosen, tuple(usual), kwargs, scale)


def with_environment(task: Task, env_id: str | None, target_returns: tuple[float, ...]) -> Task:
    """The task in another environment or with other targets, where given.

    Raises:
        UserError: if no environment is known, or there is no target to ask for.
    """
    chosen = env_id or task.env_id
    if chosen is None:
        raise UserError("this run names no environment; give one with --env, such as Hopper-v5")
    kwargs = task.env_kwargs if chosen == task.env_id else {}
    reference = task.reference if chosen == task.env_id else reference_scores(chosen)
    targets = target_returns or task.target_returns
    if not targets:
        raise UserError("this run names no target returns; give some, as --target-returns 100,50")
    return Task(chosen, tuple(targets), kwargs, reference)


def _from_data(trajectories: Trajectories) -> tuple[float, float]:
    best = float(trajectories.returns.max())
    return best, best / 2
