"""A policy as plain values and tensors, and back: what a checkpoint holds and evaluate.py reads."""

import dataclasses
from typing import Any

from minari.serialization import deserialize_space, serialize_space

from decision_s4.agents.actor_critic import ActorCritic, ActorCriticOptions
from decision_s4.agents.checkpoint import Checkpoint, load_weights_into
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task

KINDS = {"policy": (make_policy, PolicyOptions), "actor-critic": (ActorCritic, ActorCriticOptions)}


def describe(policy: Policy | ActorCritic) -> dict[str, Any]:
    """The options and spaces of a policy, for a checkpoint's metadata."""
    return {
        "kind": "actor-critic" if isinstance(policy, ActorCritic) else "policy",
        "policy": dataclasses.asdict(policy.options),
        "observation_space": serialize_space(policy.observation_space),
        "action_space": serialize_space(policy.action_space),
    }


def rebuild(checkpoint: Checkpoint) -> Policy | ActorCritic:
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


def _policy(metadata: dict[str, Any]) -> Policy | ActorCritic:
    options = dict(metadata["policy"])
    options["backbone_options"] = tuple(options["backbone_options"])
    make, options_class = KINDS[metadata.get("kind", "policy")]
    return make(
        deserialize_space(metadata["observation_space"]),
        deserialize_space(metadata["action_space"]),
        options_class(**options),
    )


def _foreign(checkpoint: Checkpoint, what: str, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return UserError(
        f"{checkpoint.path}: describes no {what} of this version ({reason}); train it anew"
    )
