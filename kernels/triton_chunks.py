# ruff: noqa: RET505 (Triton compiles what follows a return too)
"""Parts that Triton programs over chunks of L steps share: loads, products, sums of gates.

A decay from step j to step i is exp of a sum of gates, and every such sum is a product with a
matrix of zeros and ones: no difference of cumulative sums, so nothing overflows and nothing
cancels.
"""

import triton
import triton.language as tl

TAME = tl.constexpr(1e9)
LOWEST = tl.constexpr(-40.0)
RUNTIME = ["steps"]  # sizes of the model are known: loads are wide, offsets fold


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a b, summed in float32; operands in bfloat16, or float32 in parts of TF32."""
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def sums(which, gate, EXACT: tl.constexpr, PER_KEY: tl.constexpr):
    """Row l: the sum of gates (L, K or 1) over the steps r where which[l, r].

    EXACT "parts": by two bfloat16 of each gate, 16 bits of it.
    """
    if PER_KEY and EXACT == "parts":
        high = gate.to(tl.bfloat16)
        low = (gate - high.to(tl.float32)).to(tl.bfloat16)
        ones = which.to(tl.bfloat16)
        return tl.dot(ones, low, acc=tl.dot(ones, high))
    elif PER_KEY:
        return tl.dot(which.to(tl.float32), gate, input_precision=EXACT)
    else:
        return tl.sum(tl.where(which, tl.trans(gate), 0.0), axis=1)[:, None]


@triton.jit
def load(x, at, mask):
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def head_of(x, row, t, head, steps, heads, width, SHARED: tl.constexpr):
    """Where step t of one head begins, in x (B, T, H or 1, width): any number of elements on."""
    if SHARED:
        return x + (row * steps + t) * width
    else:
        return x + ((row * steps + t) * heads + head) * width


@triton.jit
def tile(lane, n, heads, width, SHARED: tl.constexpr):
    """Offsets of steps `lane` and places n from there."""
    if SHARED:
        return lane[:, None] * width + n[None, :]
    else:
        return lane[:, None] * (heads * width) + n[None, :]


@triton.jit
def gates_of(
    gate, row, t, head, steps, heads, lane, n, member, K: tl.constexpr, PER_KEY: tl.constexpr
):
    """(L, K), or (L, 1) for one gate a head."""
    if PER_KEY:
        gate_t = head_of(gate, row, t, head, steps, heads, K, False)
        at, inside = tile(lane, n, heads, K, False), member[:, None] & (n < K)[None, :]
        return load(gate_t, at, inside)
    else:
        gate_t = head_of(gate, row, t, head, steps, heads, 1, False)
        return load(gate_t, lane[:, None] * heads, member[:, None])


@triton.jit
def wild(x, at, mask):
    """How many values are not below TAME."""
    return count_wild(load(x, at, mask))


@triton.jit
def count_wild(x):
    return tl.sum(tl.where(tl.abs(x) < TAME, 0, 1))


@triton.jit
def meet(lane, level):
    """Where blocks of 2^level steps join: the gates between a step and the joint; who meets whom.

    A step in a right block sums from the joint up to itself, one in a left block from after
    itself up to the joint.
    """
    i, j = lane[:, None], lane[None, :]
    right = (i >> level) % 2 == 1
    same = (i >> level) == (j >> level)
    between = same & tl.where(right, j <= i, j > i)
    pair = right & ((i >> level) - 1 == (j >> level))
    return between, pair


@triton.jit
def meet_at_once(summed, keys):
    """Whether exp of the negated sums of gates is harmless: far from overflow, also times a key."""
    return tl.sum(tl.where((summed >= LOWEST) & (tl.abs(keys) < TAME), 0, 1)) == 0


@triton.jit
def scalar_decay(gate, lane):
    """exp of the gates after j up to i, (L, L), 0 for j > i; sums in float64 stay exact."""
    total = tl.cumsum(tl.sum(gate, axis=1).to(tl.float64), axis=0)
    exponent = (total[:, None] - total[None, :]).to(tl.float32)
    return tl.exp(tl.where(lane[:, None] >= lane[None, :], exponent, float("-inf")))
