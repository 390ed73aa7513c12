"""Exact sliding-window attention over packed episodes: chunks, what came before them, one softmax.

    y_t = Σ_s softmax_s(q_t · k_s / √d) v_s   over t − W < s <= t of t's own episode

Episodes are cut into chunks of L <= W steps (kernels/chunk_layout.py: no chunk holds two episodes).
A chunk attends to itself and to the P = W − 1 steps before it, so T steps cost O(T · W). One acting
step is the same with L = 1. Shapes: M chunks, H heads, d head width, P past steps, R rows.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from decision_s4.agents.backbones import ops
from decision_s4.kernels.chunk_layout import ChunkLayout

ROTARY_BASE = 10_000.0
Weigh: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


class Ring(NamedTuple):
    """The last P steps of R rows or chunks, oldest first; new steps push the oldest out."""

    keys: Tensor
    """(R, P, H, d), not rotated: positions are relative, so they are no part of the state."""
    values: Tensor
    """(R, P, H, d)"""
    present: Tensor
    """(R, P) 1 for a step of this episode, 0 for a place that is still empty."""

    def then(self, keys: Tensor, values: Tensor) -> "Ring":
        """These steps followed by new ones: keys, values (R, L, H, d)."""
        ones = self.present.new_ones(keys.shape[:2])
        return Ring(*(torch.cat(pair, 1) for pair in zip(self, (keys, values, ones), strict=True)))


def empty_ring(rows: int, past: int, heads: int, width: int, like: Tensor) -> Ring:
    """A ring of nothing, with the type and the device of `like`."""
    lead = (rows, past)
    keys, values = like.new_zeros(2, *lead, heads, width)
    return Ring(keys, values, like.new_zeros(lead))


def sinusoids(steps: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (steps, 1, width / 2) of rotary angles, for positions 0 … steps − 1."""
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=like.device) / width
    position = torch.arange(steps, dtype=torch.float64, device=like.device)
    angle = position[:, None] * ROTARY_BASE**-exponent
    return angle.cos()[:, None].to(like.dtype), angle.sin()[:, None].to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) in x (…, L, H, d): pairs turn by position · ω."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def band(queries: int, seen: Ring, window: int) -> Tensor:
    """(R, 1, L, P + L) bool: who sees whom, where the last L places of `seen` ask."""
    place = torch.arange(seen.present.shape[1], device=seen.present.device)
    age = place[-queries:, None] - place
    return ((age >= 0) & (age < window) & (seen.present > 0.5)[:, None])[:, None]


def attend(
    q: Tensor, seen: Ring, mask: Tensor, dropout: float = 0.0, weigh: Weigh | None = None
) -> Tensor:
    """q (R, L, H, d), seen (R, P + L, …), mask as `band` makes it -> (R, L, H · d).

    `weigh` makes (R, H, L, P + L) weights of queries, keys (R, H, …, d) and mask; None is softmax.
    """
    q, k, v = (part.to(q.dtype).transpose(1, 2) for part in (q, seen.keys, seen.values))
    if weigh is None and not ops.is_open():
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        q, k = ops.coefficient("query", q, factors=2), ops.coefficient("key", k, factors=2)
        weights = F.dropout((weigh or softmax)(q, k, mask), dropout)
        y = ops.coefficient("attention", weights, factors=2) @ ops.value(v, 2)
    return y.transpose(1, 2).flatten(2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """q · k / √d."""
    return (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5


def softmax(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """The usual weights, for `attend`."""
    return torch.softmax(scores(q, k).masked_fill(~mask, float("-inf")), -1)


def past_of_chunks(keys: Tensor, values: Tensor, state: Ring, layout: ChunkLayout) -> Ring:
    """What precedes each chunk (M, L, H, d): its predecessor, the state carried in, or nothing."""
    past, firsts = state.present.shape[1], sum(layout.counts[:1])
    before = layout.previous

    def follow(carried: Tensor, own: Tensor) -> Tensor:
        first = carried.new_zeros(firsts, *carried.shape[1:])
        first = first.index_copy(0, layout.carry_chunks, carried[layout.carry_rows])
        if not len(before):  # then chunks may be shorter than the past
            return first
        return torch.cat([first, own[before, own.shape[1] - past :].to(first.dtype)])

    ones = state.present.new_ones(keys.shape[:2])
    return Ring(*map(follow, state, (keys, values, ones)))


def has_past(layout: ChunkLayout) -> bool:
    """Whether any chunk follows another or a state carried in."""
    return len(layout.counts) > 1 or len(layout.carry_rows) > 0


def after_chunks(seen: Ring, state: Ring, layout: ChunkLayout) -> Ring:
    """Each row's ring after its last valid step; `seen` (M, P + L, …) is past then own."""
    past = state.present.shape[1]
    places = layout.final_lengths[:, None] + torch.arange(past, device=state.present.device)

    def last(carried: Tensor, all_seen: Tensor) -> Tensor:
        ends = all_seen[layout.final_chunks[:, None], places]
        return carried.index_copy(0, layout.final_rows, ends.to(carried.dtype))

    return Ring(*map(last, state, seen))
