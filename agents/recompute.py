"""Acting by reading the last K steps anew at each step, as Decision Transformer was evaluated.

Published scores of windowed policies come from this mode (arXiv 2106.01345, algorithm 1): the
window is read as if an episode began with it, as random windows are in training. It costs K times
the work of a recurrent step. Shapes: B rows, K steps of the window.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import State
from decision_s4.agents.policy import Policy
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.tokens import TokenPolicy, TokenState
from decision_s4.envs.spaces import LeafSpace, Tree, leaf_shape, leaf_spaces, map_tree
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.packing import Packing


class Window(NamedTuple):
    """The last K steps of each row, oldest first."""

    timestep: Tensor
    """(B, K) int64 number of each step in its episode; −1 before the first."""
    return_to_go: Tensor
    """(B, K)"""
    observation: Tree
    """(B, K, …)"""
    previous_action: Tree
    """(B, K, …)"""


class Recompute(Policy):
    """A policy's `initial_state` and `step` over a Window; put before the policy's class.

    `forward` is the policy's own, which reads whole windows and takes no state.
    """

    def initial_state(self, batch_size: int) -> State:
        """A Window of nothing."""
        lead = (batch_size, self.options.context_steps)
        device = self.head.linear.weight.device
        return Window(
            torch.full(lead, -1, device=device),
            torch.zeros(lead, device=device),
            _zeros(self.observation_space, lead, device),
            _zeros(self.action_space, lead, device),
        )

    def step(self, step: TimeStep, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Features (B, D) of the newest step, and the window moved on by one."""
        state = _push(step, state)
        return self.forward(_batch(state))[0][:, -1], state


class RecomputedSequencePolicy(Recompute, SequencePolicy):
    """One token a step; acts by recomputing."""

    def forward(
        self, batch: Any, state: State | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, State]:
        """Features (B, T, D) of whole windows. Raises ValueError for a state; `step` acts."""
        _check_none(state)
        return super().forward(batch, None, packing)


class RecomputedTokenPolicy(Recompute, TokenPolicy):
    """Three tokens a step; acts by recomputing: the published Decision Transformer."""

    def forward(self, batch: Any, state: State | None = None) -> tuple[Tensor, TokenState]:
        """Features (B, T, D) of whole windows. Raises ValueError for a state; `step` acts."""
        _check_none(state)
        return super().forward(batch)


def _check_none(state: State | None) -> None:
    if state is not None:
        raise ValueError("forward of a policy that recomputes takes no state; use step")


def _zeros(space: spaces.Space, lead: tuple[int, ...], device: torch.device) -> Tree:
    def zeros(leaf: LeafSpace) -> Tensor:
        return torch.zeros(*lead, *leaf_shape(leaf), dtype=_type(leaf.dtype), device=device)

    return map_tree(zeros, leaf_spaces(space))


def _type(dtype: np.dtype) -> torch.dtype:
    """As a TimeStep holds it: floats as the default type, bytes as bytes, the rest as int64."""
    if np.issubdtype(dtype, np.floating):
        return torch.get_default_dtype()
    return torch.uint8 if dtype == np.uint8 else torch.long


def _push(step: TimeStep, state: Window) -> Window:
    time = state.timestep.masked_fill(step.start[:, None], -1)
    newest = Window(time[:, -1] + 1, step.return_to_go, step.observation, step.previous_action)

    def append(window: Tensor, new: Tensor) -> Tensor:
        return torch.cat([window[:, 1:], new[:, None].to(window.dtype)], 1)

    return tree_map(append, state._replace(timestep=time), newest)


def _batch(state: Window) -> SimpleNamespace:
    """The window as a batch: its oldest step begins an episode, places before it are padding."""
    valid = state.timestep >= 0
    start = valid.clone()
    start[:, 1:] &= ~valid[:, :-1]
    fields = state._asdict() | {"timestep": state.timestep.clamp(min=0)}
    return SimpleNamespace(**fields, start=start, valid=valid)
