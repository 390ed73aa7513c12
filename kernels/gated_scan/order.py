"""Episodes side by side, longest first: the order of a torch PackedSequence.

Shapes: M valid steps of E episodes; all first steps come first, then all second ones, …
"""

import torch
from torch import Tensor

from decision_s4.kernels.chunk_layout import ChunkLayout


def pack(x: Tensor, state: Tensor, layout: ChunkLayout) -> tuple[Tensor, Tensor]:
    """x (B, T, D) as (M, D), and the state (E, parts, H) before each episode.

    `layout` has chunks of one step.
    """
    before = state.new_zeros(layout.counts[0], *state.shape[1:])
    before = before.index_copy(0, layout.carry_chunks, state[layout.carry_rows])
    return x.flatten(0, 1)[layout.source.squeeze(1)], before


def unpack(
    hidden: Tensor, after: Tensor, state: Tensor, layout: ChunkLayout, steps: int
) -> tuple[Tensor, Tensor]:
    """hidden (M, H) as (B, T, H), and the state (B, parts, H) after each row's last episode."""
    padded = torch.cat([hidden, hidden.new_zeros(1, hidden.shape[1])])
    final = state.index_copy(0, layout.final_rows, after[layout.final_episodes])
    return padded[layout.target].unflatten(0, (-1, steps)), final


def shrink(part: Tensor, count: int, ended: list[Tensor]) -> Tensor:
    """The first `count` episodes go on; the others, the shorter ones, have ended."""
    if len(part) > count:
        ended.append(part[count:])
        part = part[:count]
    return part
