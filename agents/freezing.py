"""What of a recurrent policy stands still while it learns from stored states."""

from torch import nn

from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.stored_state import after_memory


def freeze(policy: SequencePolicy, what: str) -> SequencePolicy:
    """Fix all that feeds a state ("states"), the recurrence ("memory"), all of it but the read-outs
    C ("core"), or nothing."""
    if what == "states":
        return _freeze_what_feeds_states(policy)
    recurrence = policy.backbone.recurrence_parameters()
    readers = {id(c) for c in _read_out_weights(policy)}
    for parameter in recurrence:
        fixed = what == "memory" or (what == "core" and id(parameter) not in readers)
        parameter.requires_grad_(not fixed)
    return policy


def _freeze_what_feeds_states(policy: SequencePolicy) -> SequencePolicy:
    policy.requires_grad_(False)
    for module in after_memory(policy):
        module.requires_grad_(True)
    return policy


def _read_out_weights(policy: SequencePolicy) -> list[nn.Parameter]:
    found = [getattr(block.mixer, "c", None) for block in policy.backbone.blocks]
    return [c for c in found if isinstance(c, nn.Parameter)]
