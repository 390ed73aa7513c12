"""A policy as plain values and tensors, and back: what a checkpoint holds and evaluate.py reads."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from gymnasium import Space
from minari.serialization import deserialize_space, serialize_space

from decision_s4.agents.actor import Actor
from decision_s4.agents.actor_critic import ActorCritic, ActorCriticOptions
from decision_s4.agents.checkpoint_files import Checkpoint
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.weights import load_weights_into
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Trajectories

if TYPE_CHECKING:
    from decision_s4.agents.model_agent import ModelAgent

Saved: TypeAlias = "Policy | ActorCritic | ModelAgent"
"""A policy of ours, or one of another library, which is imported where one is rebuilt."""


def _sequence_policy(observed: Space, done: Space, options: dict[str, Any]) -> Policy:
    return make_policy(observed, done, _with_options(PolicyOptions, options))


def _actor_critic(observed: Space, done: Space, options: dict[str, Any]) -> ActorCritic:
    return ActorCritic(observed, done, _with_options(ActorCriticOptions, options))


def _model_agent(observed: Space, done: Space, options: dict[str, Any]) -> "ModelAgent":
    from decision_s4.agents.models import ModelOptions, make_agent

    return make_agent(observed, done, ModelOptions(**options))


KINDS: dict[str, Callable[[Space, Space, dict[str, Any]], Saved]] = {
    "policy": _sequence_policy,
    "actor-critic": _actor_critic,
    "model": _model_agent,
}


def agent_of(policy: Saved) -> Agent:
    """The policy, ready to act."""
    return Actor(policy) if isinstance(policy, Policy | ActorCritic) else policy


def describe(policy: Saved) -> dict[str, Any]:
    """The options and spaces of a policy, for a checkpoint's metadata."""
    return {
        "kind": _kind(policy),
        "policy": dataclasses.asdict(policy.options),
        "observation_space": serialize_space(policy.observation_space),
        "action_space": serialize_space(policy.action_space),
    }


def misfit(policy: Saved, data: Trajectories) -> str | None:
    """Which space of logged data is not the policy's; None where both are."""
    for kind in ("observation_space", "action_space"):
        ours, theirs = getattr(policy, kind), getattr(data, kind)
        if ours != theirs:
            return f"its {kind} is {theirs}, the policy's {ours}"
    return None


def rebuild(checkpoint: Checkpoint) -> Saved:
    """The policy of a checkpoint, in evaluation mode.

    Raises:
        UserError: where the metadata or the weights are not those of a policy of this version.
    """
    try:
        policy = _policy(checkpoint.metadata)
    except Exception as error:  # whatever a foreign description makes Gymnasium or torch raise
        raise _foreign(checkpoint, "policy", error) from error
    load_weights_into(policy, checkpoint.weights, checkpoint.path)
    return policy.eval()


def task(checkpoint: Checkpoint) -> Task:
    """The task that a checkpoint's policy was trained for.

    Raises:
        UserError: where the metadata describes none.
    """
    try:
        return Task.from_description(checkpoint.metadata["task"])
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(checkpoint, "task", error) from error


def _policy(metadata: dict[str, Any]) -> Saved:
    return KINDS[metadata.get("kind", "policy")](
        deserialize_space(metadata["observation_space"]),
        deserialize_space(metadata["action_space"]),
        dict(metadata["policy"]),
    )


def _with_options(form: type, options: dict[str, Any]) -> Any:
    return form(**options | {"backbone_options": tuple(options["backbone_options"])})


def _kind(policy: Saved) -> str:
    if isinstance(policy, ActorCritic):
        return "actor-critic"
    return "policy" if isinstance(policy, Policy) else "model"


def _foreign(checkpoint: Checkpoint, what: str, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return UserError(
        f"{checkpoint.path}: describes no {what} of this version ({reason}); train it anew"
    )
