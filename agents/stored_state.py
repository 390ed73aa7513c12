"""What a replay keeps of a recurrent state, and a policy's single step from it.

A step from a stored state is the policy's own step: what led to the state is a constant of it, and
no gradient goes back through time. Shapes: B rows, L layers, D model width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import State
from decision_s4.agents.backbones.s4 import LinearStateSpace
from decision_s4.agents.policy import SequencePolicy
from decision_s4.envs.timestep import TimeStep

Stored = Any  # a tree of tensors, batch first


class StoredState(Protocol):
    """A way of keeping the states of one kind of policy."""

    def keep(self, state: State) -> Stored:
        """What to store of the state before a step."""
        ...

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """Features (B, D) of one step from what was stored; differentiable in the weights."""
        ...


class WholeState:
    """The state as it is: for every backbone, and where the recurrence itself is trained."""

    def keep(self, state: State) -> Stored:
        """The state."""
        return state

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's own step."""
        return policy.step(step._replace(start=torch.zeros_like(step.start)), stored)[0]


class ReadOuts:
    """What frozen linear state spaces read out of their states, (B, L, D): N times smaller.

    With A, B, C and dt fixed, y_t = 2 Re(c · Ā x_{t−1}) + (2 Re(c · b) + d) u_t depends on the
    state by its first term alone, which no update changes.
    """

    def __init__(self, policy: SequencePolicy):
        with torch.no_grad():
            constants = policy.backbone.constants()
        self.constants = tree_map(lambda x: x if x is None else x.clone(), constants)
        self.mixers = [block.mixer for block in policy.backbone.blocks]

    @staticmethod
    def fits(policy: SequencePolicy) -> bool:
        """Whether all layers are linear state spaces, none of whose recurrence is trained."""
        backbone = policy.backbone
        linear = all(isinstance(block.mixer, LinearStateSpace) for block in backbone.blocks)
        return linear and not any(p.requires_grad for p in backbone.recurrence_parameters())

    @torch.no_grad()
    def keep(self, state: State) -> Stored:
        """The read-out of each layer."""
        layers = zip(self.mixers, state, self.constants, strict=True)
        return torch.stack([mixer.read_out(x, constants) for mixer, x, constants in layers], 1)

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's own step, its skip d trained."""
        x = policy.embed(step.return_to_go, step.observation, step.previous_action, step.start)
        layers = zip(policy.backbone.blocks, stored.unbind(1), self.constants, strict=True)
        for block, read_out, (system, _) in layers:
            x = block.respond(x, read_out, (system, block.mixer.d))
        return policy.backbone.norm(x)


def stored_state(policy: SequencePolicy) -> StoredState:
    """The smallest way that is exact for this policy."""
    return ReadOuts(policy) if ReadOuts.fits(policy) else WholeState()
