"""What an agent sees at one moment, and what it takes to be an agent."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils._pytree import tree_map

from decision_s4.envs.spaces import Tree

State = Any  # a pytree of tensors, batch first; None for an agent without memory


def rows_of(state: State, rows: np.ndarray) -> State:
    """Some rows (n,) of a state."""

    def select(leaf: torch.Tensor | None) -> torch.Tensor | None:
        return leaf if leaf is None else leaf[torch.as_tensor(rows, device=leaf.device)]

    return tree_map(select, state)


class TimeStep(NamedTuple):
    """One moment of B episodes, as CPU tensors; a tree holds one tensor (B, …) a leaf space.

    `terminated` and `truncated` say how the step before ended and are kept apart: value targets
    stop at termination only, recurrent state starts anew after either.
    """

    observation: Tree  # (B, …); types are those of envs/tensors.py
    previous_action: Tree  # (B, …) as the environment took it; zeros where `start`
    previous_reward: torch.Tensor  # (B,) float32; zero where `start`
    return_to_go: torch.Tensor  # (B,) float32: the target minus the rewards so far
    start: torch.Tensor  # (B,) bool: first step of an episode, the state is as new before it
    terminated: torch.Tensor  # (B,) bool
    truncated: torch.Tensor  # (B,) bool


class Agent(Protocol):
    """Anything that acts. Its memory goes in and out with every call; it hides none in itself."""

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` episodes before their first step."""
        ...

    def act(self, step: TimeStep, state: State, deterministic: bool = False) -> tuple[Tree, State]:
        """Actions (B, …) as tensors or arrays, in the action space's own units, and the new state.

        `deterministic` asks for the most likely action in place of a sample.
        """
        ...
