"""A policy as plain values and tensors, and back: what a checkpoint holds and evaluate.py reads."""

import dataclasses
from typing import Any

from minari.serialization import deserialize_space, serialize_space

from decision_s4.agents.checkpoint import Checkpoint, load_weights_into
from decision_s4.agents.policy import PolicyOptions, SequencePolicy
from decision_s4.envs.errors import UserError


def describe(policy: SequencePolicy) -> dict[str, Any]:
    """The options and spaces of a policy, for a checkpoint's metadata."""
    return {
        "policy": dataclasses.asdict(policy.options),
        "observation_space": serialize_space(policy.observation_space),
        "action_space": serialize_space(policy.action_space),
    }


def rebuild(checkpoint: Checkpoint) -> SequencePolicy:
    """The policy of a checkpoint, in evaluation mode.

    Raises:
        UserError: where the metadata or the weights are not those of a policy of this version.
    """
    metadata = checkpoint.metadata
    try:
        options = dict(metadata["policy"])
        options["backbone_options"] = tuple(options["backbone_options"])
        policy = SequencePolicy(
            deserialize_space(metadata["observation_space"]),
            deserialize_space(metadata["action_space"]),
            PolicyOptions(**options),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint.path}: describes no policy of this version ({error}); train it anew"
        ) from None
    load_weights_into(policy, checkpoint.weights, checkpoint.path)
    return policy.eval()
