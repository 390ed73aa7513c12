"""How Triton programs walk the episodes of packed rows one by one, without asking the CPU how many
there are.

A row's valid steps are numbered in time order (`packing.Walk`): `order` (B, T) says where each
lies, `count` (B,) how many there are, `segment` (B, T) how many episodes have begun up to a step.
A program has the episodes that begin in a tile of TILE steps of a row, and walks them to the end of
the last; what the row's first step belongs to begins there. Where nothing begins it does nothing.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

TILE = 32
FORWARD, BACKWARD = 24, 100  # weights a thread holds, as long as 16 warps suffice
REGISTERS = 65536  # of a multiprocessor
BLOCK = tl.constexpr(512)  # steps looked at at once for where episodes begin


@triton.jit
def place_of(order, row, steps, at, inside, ORDER: tl.constexpr):
    """Where the step number `at` of a row lies in (B·T)."""
    place = row * steps + at
    if ORDER:
        place = row * steps + tl.load(order + place, mask=inside, other=0)
    return place


@triton.jit
def segment_of(segment, place, inside):
    """−1 where not inside."""
    return tl.load(segment + place, mask=inside, other=-1)


@triton.jit
def span(order, segment, row, steps, count, tile, TILE: tl.constexpr, ORDER: tl.constexpr):
    """(first, end): the steps numbered first … end − 1 are of episodes that begin in the tile; both
    0 where none does."""
    begin = tile * TILE
    last = tl.minimum(begin + TILE, count) - 1
    inside = last >= begin
    behind = inside & (begin > 0)
    place = place_of(order, row, steps, begin - 1, behind, ORDER)
    before = segment_of(segment, place, behind)
    place = place_of(order, row, steps, last, inside, ORDER)
    mine = segment_of(segment, place, inside)
    first, end = 0, 0
    if mine > before:
        for base in range(0, count, BLOCK):
            at = base + tl.arange(0, BLOCK)
            places = place_of(order, row, steps, at, at < count, ORDER)
            met = segment_of(segment, places, at < count)
            first += tl.sum(((met >= 0) & (met <= before)).to(tl.int32), axis=0)
            end += tl.sum(((met >= 0) & (met <= mine)).to(tl.int32), axis=0)
    return first, end


@triton.jit
def matrix(weight, gate, i, j, H: tl.constexpr):
    """(H_, H_) float32: row i, column j of matrix number `gate` of several (H, H)."""
    inside = (i < H)[:, None] & (j < H)[None, :]
    at = (gate * H + i)[:, None] * H + j[None, :]
    return tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def turned(weight, gate, i, j, H: tl.constexpr):
    """(H_, H_): its transpose."""
    inside = (i < H)[None, :] & (j < H)[:, None]
    at = (gate * H + i)[None, :] * H + j[:, None]
    return tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def vector(pointer, i, inside, H: tl.constexpr):
    """(H_,) float32 that begin at `pointer`; zeros where not inside."""
    return tl.load(pointer + i, mask=inside & (i < H), other=0.0).to(tl.float32)


@triton.jit
def put(pointer, i, value, H: tl.constexpr):
    """Store (H_,) numbers from `pointer` on."""
    tl.store(pointer + i, value.to(pointer.dtype.element_ty), mask=i < H)


def grid(like: Tensor) -> tuple[int, int]:
    """Programs for rows `like` (B, T, …): one a row and tile."""
    return len(like), triton.cdiv(like.shape[1], TILE)


def padded(width: int) -> int:
    """The power of two that vectors of `width` are padded to."""
    return max(16, triton.next_power_of_2(width))


def launch(weights: int, each: int) -> dict[str, Any]:
    """How to launch programs that hold so many weights, `each` a thread: warps and registers."""
    warps = min(16, max(2, triton.next_power_of_2(weights // (32 * each))))
    return {"num_warps": warps, "maxnreg": min(255, REGISTERS // (32 * warps))}
