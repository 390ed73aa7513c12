"""A replay of single transitions, each with the recurrent states it was acted from.

A ring of `capacity` slots. Positions count all transitions ever added; position p lies in slot
p mod capacity for as long as it is there. Shapes: B transitions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.stored_state import Stored
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep


class Transition(NamedTuple):
    """One step of B episodes. `next_…` is what was seen after it, whether or not it ended there."""

    observation: Tree  # (B, …) s_t
    previous_action: Tensor  # (B, …) a_{t−1}, zeros at an episode's start
    start: Tensor  # (B,) bool
    return_to_go: Tensor  # (B,) R_t
    state: Stored  # what is kept of the state before the step
    action: Tensor  # (B, …) a_t as the environment took it
    reward: Tensor  # (B,) r_t
    terminated: Tensor  # (B,) bool; a truncated episode's value goes on
    next_observation: Tree  # (B, …) s_{t+1}
    next_return_to_go: Tensor  # (B,) R_t − r_t
    next_state: Stored  # what is kept of the state before the next step
    born: Tensor  # (B,) int64, the number of the learner's updates when it was stored


def this_step(batch: Transition) -> TimeStep:
    """What the actor saw."""
    never = torch.zeros_like(batch.start)
    return TimeStep(
        batch.observation,
        batch.previous_action,
        batch.reward,
        batch.return_to_go,
        batch.start,
        never,
        never,
    )


def next_step(batch: Transition) -> TimeStep:
    """What the actor saw, or would have seen, after it."""
    never = torch.zeros_like(batch.start)
    return TimeStep(
        batch.next_observation,
        batch.action,
        batch.reward,
        batch.next_return_to_go,
        never,
        batch.terminated,
        never,
    )


class Replay:
    """The last `capacity` transitions, drawn from with equal probability."""

    def __init__(self, capacity: int):
        self.capacity, self.added = capacity, 0
        self.store: Transition | None = None

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Transition) -> Tensor:
        """Store B transitions over the oldest; returns their positions (B,)."""
        if self.store is None:
            self.store = tree_map(self._room, batch)
        positions = torch.arange(self.added, self.added + len(batch.reward))
        slots = positions % self.capacity

        def put(ours: Tensor, new: Tensor) -> None:
            ours.index_copy_(0, slots, new.to(ours.dtype))  # older checkpoints: narrower

        tree_map(put, self.store, batch)
        self.added += len(positions)
        return positions

    def relabel(self, positions: Tensor, residual: float) -> None:
        """Hindsight: subtract an episode's `residual` from each of its returns-to-go.

        After an episode of T steps R_T, the part of the target not earned, is the residual; less
        it, R_t is the sum of the rewards from t on. Overwritten positions are left alone.
        """
        if self.store is None:
            return
        slots = positions[positions >= self.added - self.capacity] % self.capacity
        self.store.return_to_go[slots] -= residual
        self.store.next_return_to_go[slots] -= residual

    def sample(self, size: int, generator: torch.Generator) -> Transition:
        """`size` transitions, drawn with replacement."""
        slots = torch.randint(len(self), (size,), generator=generator)
        return tree_map(lambda leaf: leaf.index_select(0, slots), self.store)

    def recent(self, count: int) -> Transition:
        """The newest `count` transitions, or all there are."""
        slots = torch.arange(max(0, self.added - count, self.added - len(self)), self.added)
        return tree_map(lambda leaf: leaf[slots % self.capacity], self.store)

    def state_dict(self) -> dict[str, Any]:
        """All that is stored."""
        filled = tree_map(lambda leaf: leaf[: len(self)], self.store) if len(self) else None
        fields = None if filled is None else dict(filled._asdict())
        return {"added": self.added, "store": fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the same capacity."""
        self.added, self.store = 0, None
        if state["store"] is not None:  # slot by slot, wherever the oldest lies
            stored = Transition(**state["store"])
            beside = {n: _side_by_side(getattr(stored, n)) for n in ("state", "next_state")}
            self.add(stored._replace(**beside))
        self.added = state["added"]

    def _room(self, leaf: Tensor) -> Tensor:
        try:
            return leaf.new_empty(self.capacity, *leaf.shape[1:])
        except RuntimeError as error:  # torch's allocator
            raise UserError(
                f"--replay-size {self.capacity} does not fit into memory; lower it"
            ) from error


def _side_by_side(state: Stored) -> Stored:
    """A state's tensors in one row, as they are kept; older checkpoints hold them nested."""
    return state if isinstance(state, Tensor) else tuple(tree_leaves(state))
