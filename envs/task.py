"""Where a policy is evaluated: an environment, the returns to ask for, the scale of scores."""

from dataclasses import dataclass, field, replace
from typing import Any

from gymnasium import spaces

from decision_s4.envs.errors import UserError
from decision_s4.envs.make import check_compatible, make
from decision_s4.envs.rollout import Progress, evaluate
from decision_s4.envs.scores import ReferenceScores, default_target_returns, reference_scores
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Trajectories

NO_ENVIRONMENT = "this run names no environment; give one with --env, such as Hopper-v5"


@dataclass(frozen=True)
class Task:
    """An evaluation's environment; `env_id` None where there is none to evaluate in."""

    env_id: str | None
    target_returns: tuple[float | None, ...]  # None for a policy that aims at none
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    reference: ReferenceScores | None = None
    return_range: tuple[float, float] | None = None
    """Lowest and highest return of an episode learned from, to which targets are held; or None."""
    learned_steps: int | None = None
    """Steps of the longest stretch that the policy was trained on; None where nobody knows."""

    @property
    def environment(self) -> str:
        """`env_id`. Raises UserError where there is none."""
        if self.env_id is None:
            raise UserError(NO_ENVIRONMENT)
        return self.env_id

    @property
    def aims(self) -> tuple[float | None, ...]:
        """What a policy is asked for in place of each target: the nearest return in the range."""
        return tuple(map(self.aim, self.target_returns))

    def aim(self, target: float | None) -> float | None:
        """The return nearest to `target` in the range; the target itself where there is none."""
        if target is None or self.return_range is None:
            return target
        lowest, highest = self.return_range
        return min(max(target, lowest), highest)

    def evaluate(
        self, agent: Agent, episodes: int, seed: int, progress: Progress | None = None
    ) -> list[dict[str, float | None]]:
        """`episodes` episodes for each target, as rows of eval.csv; none without environment.

        Targets held to one and the same return share their episodes. `progress` is called every
        time step with (steps taken, episodes still running).
        """
        if self.env_id is None:
            return []
        evaluations = evaluate(
            agent,
            self.env_id,
            _distinct(self.aims),
            episodes,
            seed,
            reference=self.reference,
            env_kwargs=self.env_kwargs,
            progress=progress,
        )
        rows = {evaluation.target_return: evaluation.row() for evaluation in evaluations}
        pairs = zip(self.target_returns, self.aims, strict=True)
        return [rows[aim] | {"target_return": target} for target, aim in pairs]

    def summary(self) -> str:
        """One line for a person."""
        if self.env_id is None:
            return "no evaluation here; later: evaluate.py with --env"
        if self.target_returns == (None,):
            return self.env_id
        targets = ", ".join(f"{target:g}" for target in self.target_returns)
        return f"{self.env_id}, target returns {targets}"

    def held(self) -> list[str]:
        """One line for a person for each target that is held."""
        lines = []
        for target, aim in zip(self.target_returns, self.aims, strict=True):
            if target is not None and aim is not None and aim != target:
                which = "best" if aim < target else "poorest"
                lines.append(
                    f"asked for {target:g}, the {which} logged episode returned {aim:.5g}: "
                    "asking for that"
                )
        return lines

    def scale(self) -> str:
        """One line that says what a score is here."""
        return self.reference.describe() if self.reference else "none: no reference returns known"

    def describe(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; `Task.from_description` reads them."""
        scale = self.reference
        return {
            "env_id": self.env_id,
            "target_returns": list(self.target_returns),
            "env_kwargs": self.env_kwargs,
            "reference": [scale.minimum, scale.maximum, scale.source] if scale else None,
            "return_range": self.return_range and list(self.return_range),
            "learned_steps": self.learned_steps,
        }

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> "Task":
        """The task that `describe` wrote; KeyError, TypeError or ValueError for anything else."""
        scale, span = values["reference"], values.get("return_range")
        steps = values.get("learned_steps")
        return cls(
            values["env_id"],
            tuple(None if t is None else float(t) for t in values["target_returns"]),
            dict(values["env_kwargs"]),
            ReferenceScores(*scale) if scale else None,
            (float(span[0]), float(span[1])) if span else None,
            None if steps is None else int(steps),
        )


def environment_task(env_id: str | None, env_kwargs: dict[str, Any]) -> Task:
    """An environment to learn in, without targets. Raises UserError where it cannot be made."""
    if env_id in (None, "none"):
        raise UserError("--env is none; name an environment to learn in, as CartPoleNoVel-v1")
    make(env_id, **env_kwargs).close()
    return Task(env_id, (None,), env_kwargs, reference_scores(env_id))


def task_of(
    trajectories: Trajectories,
    env_id: str | None = None,
    target_returns: tuple[float, ...] = (),
    user_scores: tuple[float, ...] = (),
) -> Task:
    """The task a dataset was recorded in; `env_id` ('none' for no environment) overrides its own.

    Without `target_returns`, the task's usual ones, or the dataset's best return and half of it
    (its mean return where that is below 0). `user_scores` go before any other scale.

    Raises:
        UserError: for an environment that cannot be made or does not fit the data.
    """
    own = trajectories.env_id
    chosen = env_id or own
    task_name = own if chosen == "none" else chosen
    usual = default_target_returns(task_name or "") or _from_data(trajectories)
    targets = _distinct(target_returns or usual)
    if chosen in (None, "none"):
        return Task(None, targets)
    kwargs = trajectories.env_kwargs if chosen == own else {}
    try:
        check_environment(
            chosen, kwargs, trajectories.observation_space, trajectories.action_space, "the dataset"
        )
    except UserError as error:
        joint = " " if str(error).endswith("?") else "; "
        raise UserError(f"{error}{joint}--env none trains without evaluation") from None
    scale = reference_scores(chosen, trajectories.reference_scores, user_scores or None)
    return Task(chosen, targets, kwargs, scale)


def with_environment(
    task: Task,
    env_id: str | None,
    target_returns: tuple[float | None, ...],
    user_scores: tuple[float, ...] = (),
) -> Task:
    """The task in another environment, with other targets or on another scale, where given.

    Raises:
        UserError: if no environment is known, or there is no target to ask for.
    """
    chosen = env_id or task.env_id
    if chosen in (None, "none"):
        raise UserError(NO_ENVIRONMENT)
    kwargs = task.env_kwargs if chosen == task.env_id else {}
    reference = task.reference if chosen == task.env_id else reference_scores(chosen)
    if user_scores:
        reference = reference_scores(chosen, user_scores=user_scores)
    targets = target_returns or task.target_returns
    if not targets:
        raise UserError("this run names no target returns; give some, as --target-returns 100,50")
    return replace(
        task,
        env_id=chosen,
        target_returns=_distinct(targets),
        env_kwargs=kwargs,
        reference=reference,
    )


def check_environment(
    env_id: str,
    env_kwargs: dict[str, Any],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    owner: str,
) -> None:
    """Raise UserError unless the environment can be made and fits the spaces of `owner`."""
    env = make(env_id, **env_kwargs)
    try:
        check_compatible(env, observation_space, action_space, owner)
    finally:
        env.close()


def _from_data(trajectories: Trajectories) -> tuple[float, float]:
    best, mean = float(trajectories.returns.max()), float(trajectories.returns.mean())
    return _rounded(best), _rounded(best / 2 if best >= 0 else mean)


def _rounded(target: float) -> float:
    """Four digits that count: targets are read in tags, tables and the names of videos."""
    return float(f"{target:.4g}")


def _distinct(targets: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(dict.fromkeys(targets))
