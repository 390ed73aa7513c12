"""What a replay keeps of a recurrent state, and a policy's single step from it.

A step from a stored state is the policy's own step: what led to the state is a constant of it, and
no gradient goes back through time. Shapes: B rows, L layers, D model width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from decision_s4.agents.backbones import State
from decision_s4.agents.backbones.s4 import LinearStateSpace, linear_of
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.timestep import TimeStep

Stored = Any  # a tree of tensors, batch first


class StoredState(Protocol):
    """A way of keeping the states of one kind of policy."""

    def keep(self, state: State, step: TimeStep) -> Stored:
        """What to store of the state before a step, and of that step."""
        ...

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """Features (B, D) of one step from what was stored; differentiable in the weights."""
        ...


class WholeState:
    """The state as it is: for every backbone, and where the recurrence itself is trained."""

    def __init__(self, policy: SequencePolicy):
        self.form = tree_structure(policy.initial_state(1))

    def keep(self, state: State, step: TimeStep) -> Stored:
        """The state's tensors side by side: a checkpoint knows no other kinds of trees."""
        return tuple(tree_leaves(state))

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's own step."""
        state = tree_unflatten(stored, self.form)
        return policy.step(step._replace(start=torch.zeros_like(step.start)), state)[0]


class NewState:
    """Nothing: each step begins from a new state. It shows what stored states are worth."""

    def keep(self, state: State, step: TimeStep) -> Stored:
        """(B, 0)."""
        return step.return_to_go.new_empty(len(step.return_to_go), 0)

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's step as an episode's first."""
        return policy.step(step, policy.initial_state(len(stored)))[0]


class ReadOuts:
    """What frozen linear state spaces read out of their states, (B, L, D): N times smaller.

    With A, B, C and dt fixed, y_t = 2 Re(c · Ā x_{t−1}) + (2 Re(c · b) + d) u_t depends on the
    state by its first term alone, which no update changes.
    """

    def __init__(self, policy: SequencePolicy):
        self.constants = fixed_constants(policy)
        self.mixers = [linear_of(block.mixer) for block in policy.backbone.blocks]

    @staticmethod
    def fits(policy: SequencePolicy) -> bool:
        """Whether all layers are linear state spaces, none of whose recurrence is trained."""
        backbone = policy.backbone
        linear = all(isinstance(block.mixer, LinearStateSpace) for block in backbone.blocks)
        return linear and not any(p.requires_grad for p in backbone.recurrence_parameters())

    @torch.no_grad()
    def keep(self, state: State, step: TimeStep) -> Stored:
        """The read-out of each layer."""
        layers = zip(self.mixers, state, self.constants, strict=True)
        return torch.stack([mixer.read_out(x, constants) for mixer, x, constants in layers], 1)

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's own step, its skip d trained."""
        x = policy.token(step)
        layers = zip(policy.backbone.blocks, stored.unbind(1), self.constants, strict=True)
        for block, read_out, (system, _) in layers:
            mixer = linear_of(block.mixer)
            x = block.add(x, mixer.respond(block.norm(x), read_out, (system, mixer.d)))
        return policy.backbone.norm(x)


class LastLayer:
    """What the last layer takes in and what its memory gives, (B, 2, D).

    Where all that comes before it stands still, no update changes these two, and a step is what
    is left: the last layer's mixing of channels and MLP, and a norm.
    """

    def __init__(self, policy: SequencePolicy):
        self.constants, self.policy = fixed_constants(policy), policy

    @staticmethod
    def fits(policy: SequencePolicy) -> bool:
        """Whether nothing is trained but what `after_memory` names, in linear state spaces."""
        trained = {id(p) for p in policy.parameters() if p.requires_grad}
        late = {id(p) for module in after_memory(policy) for p in module.parameters()}
        return ReadOuts.fits(policy) and trained <= late

    @torch.no_grad()
    def keep(self, state: State, step: TimeStep) -> Stored:
        """The last layer's input, and its channels' outputs before they are mixed."""
        x, (*below, last) = self.policy.token(step), self.policy.backbone.blocks
        for block, memory, constants in zip(below, state[:-1], self.constants[:-1], strict=True):
            x, _ = block.step(x, memory, constants)
        y, _ = linear_of(last.mixer).remember(last.norm(x), state[-1], self.constants[-1])
        return torch.stack([x, y], 1)

    def step(self, policy: SequencePolicy, step: TimeStep, stored: Stored) -> Tensor:
        """The policy's own step."""
        last, (x, y) = policy.backbone.blocks[-1], stored.unbind(1)
        return policy.backbone.norm(last.add(x, linear_of(last.mixer).mix_channels(y)))


def stored_state(policy: SequencePolicy, returns_change: bool) -> StoredState:
    """The smallest way that is exact for this policy.

    Args:
        policy: what of it is trained is what requires a gradient.
        returns_change: whether a stored step may be given another return-to-go.
    """
    if not ReadOuts.fits(policy):
        return WholeState(policy)
    return ReadOuts(policy) if returns_change or not LastLayer.fits(policy) else LastLayer(policy)


def after_memory(policy: SequencePolicy) -> list[nn.Module]:
    """What no state depends on: the head, the norm before it, the last layer's MLP and mixing."""
    last = policy.backbone.blocks[-1]
    mixing = [last.mixer.out] if isinstance(last.mixer, LinearStateSpace) else []
    return [policy.head, policy.backbone.norm, *mixing, *([last.mlp] if last.mlp else [])]


@torch.no_grad()
def fixed_constants(policy: SequencePolicy) -> Any:
    """Each layer's `constants` as they are now."""
    return tree_map(lambda x: x if x is None else x.clone(), policy.backbone.constants())
