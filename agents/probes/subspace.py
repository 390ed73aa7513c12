"""Does a direction carry what it seems to? Patching along it, and along what is read of it alone.

A direction v may change answers when patched although the policy does not use it: its part v_null,
which the next matrix W does not read, follows what differs, and its part v_row, which never moves
by itself, passes that on (Makelov, Lange, Nanda, arXiv 2311.17030). Then v_row alone does nothing:

    x ← x + v vᵀ (x' − x),   v = v_row + v_null,   W v_null = 0

Here W is the head's matrix and x what it reads. Shapes: Q queries, D features.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Table, Target
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.linear import LEAST_EPISODES, read_directions, recordings_of
from decision_s4.agents.probes.reading import values_at

HALF = 0.5
"""A direction is an illusion where v_row does less than this share of what v does."""
COLUMNS = ("direction", "of it read", "along it", "v_row alone", "v_null alone", "illusion")


class SubspaceEffect(NamedTuple):
    """Mean |change of the answer| by patching along a direction and its parts."""

    read: float
    """|v_row|² of |v|² = 1."""
    along: float
    row: float
    null: float

    @property
    def illusion(self) -> bool:
        """Whether what the policy reads of the direction does not do what the direction does."""
        return self.row < HALF * self.along


def subspace_effect(
    policy: Policy, target: Target, here: Tensor, there: Tensor, direction: Tensor
) -> SubspaceEffect:
    """Of one direction (D,), patched from `there` into `here`, both (Q, D)."""
    row, null = split_direction(policy, direction)
    with torch.no_grad():
        before = target.read(policy, here)

        def moved(v: Tensor) -> float:
            if v.norm() < 1e-6:  # nothing of a unit vector
                return 0.0
            v = v / v.norm()
            patched = here + ((there - here) @ v)[:, None] * v
            return (target.read(policy, patched) - before).abs().mean().item()

        unit = direction / direction.norm()
        read = (row.norm() / direction.norm()).item() ** 2
        return SubspaceEffect(read, moved(unit), moved(row), moved(null))


def split_direction(policy: Policy, direction: Tensor) -> tuple[Tensor, Tensor]:
    """v_row and v_null (D,) of a direction, by what the head's matrix reads."""
    read = torch.linalg.svd(policy.head.linear.weight.detach(), full_matrices=False)
    rows = read.Vh[read.S.gt(1e-6 * read.S[0])]
    part = rows.T @ (rows @ direction)
    return part, direction - part


def subspace_table(contexts: Sequence[Context]) -> Table:
    """For directions that read-outs found, and the one in which episodes differ most."""
    first = contexts[0]
    policy, target = first.policy, first.target
    pairs = [_features(context) for context in contexts]
    here, there = (torch.cat(side) for side in zip(*pairs, strict=True))
    directions = {"largest difference": torch.linalg.svd(there - here).Vh[0]}
    recordings = recordings_of(contexts)
    if len(recordings) >= LEAST_EPISODES:
        found = read_directions(policy, recordings)
        directions |= {name: torch.as_tensor(v).to(here) for name, v in found.items()}
    rows = []
    for name, direction in directions.items():
        effect = subspace_effect(policy, target, here, there, direction)
        rows.append([name, *effect, "yes" if effect.illusion else "no"])
    title = f"Are directions of what the head reads used? Mean |change of {target.name}|"
    return Table(title, COLUMNS, rows)


def _features(context: Context) -> tuple[Tensor, Tensor]:
    """(1, D) what the head reads at the query's step: clean, and of another episode."""
    runs = context.features[None], context.others[:1]
    found = [values_at(partial(context.answer, x), ["features"])["features"] for x in runs]
    return found[0][:, -1], found[1][:, -1]
