"""What the programs of the fused selective scan share: arithmetic, and tiles held in registers.

A tile is (groups of states, TIME steps, channels). Lanes, then warps, lie along channels, groups;
a thread has all steps of a channel and a group: a recurrence is plain arithmetic of one thread.
`row` and `place` pick and replace registers and cost nothing once compiled.
"""

import triton
import triton.language as tl

from decision_s4.kernels.choice import interpreted

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(interpreted())
RUNTIME = ["steps", "channels"]  # specialised, they would set other layouts


@triton.jit
def exp2(x):
    """2^x, without the care for denormals that would take three more instructions."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal(x):
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def softplus(x):
    """max(x, 0) + log(1 + e), e = exp(−|x|), by the series of 2 artanh(e / (2 + e)): error 2e-8."""
    e = exp2(-tl.abs(x) * LOG2E)
    s = e * reciprocal(2.0 + e)
    q = s * s
    series = 1 / 11 + q * (1 / 13)
    series = 1 / 7 + q * (1 / 9 + q * series)
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + exp2(-x * LOG2E))


@triton.jit
def time_step(raw, inside, SOFTPLUS: tl.constexpr):
    """Δ; 0 past the row's end, where it passes the state on."""
    if SOFTPLUS:
        raw = softplus(raw)
    return tl.where(inside, raw, 0.0)


@triton.jit
def or_zeros(x, d, here, CHANNELS: tl.constexpr, GIVEN: tl.constexpr):
    value = tl.zeros([CHANNELS], tl.float32)
    if GIVEN:
        value = tl.load(x + d, mask=here, other=0.0)
    return value


@triton.jit
def bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def pick(integers, k, i):
    """Row i of a tile of integers: (groups, channels)."""
    return tl.sum(tl.where(k[None, :, None] == i, integers, 0), axis=1)


@triton.jit
def row(x, k, i):
    """Row i of x."""
    return pick(bits(x), k, i).to(tl.float32, bitcast=True)


@triton.jit
def place(x, k, i, value):
    """x with row i replaced."""
    return tl.where(k[None, :, None] == i, value[:, None, :], x)


@triton.jit
def keep(x, mask):
    """x where the mask's bits are set, 0 where none is, even of NaN."""
    return (bits(x) & mask).to(tl.float32, bitcast=True)


@triton.jit
def packed(x, y):
    """Two floats as one integer: half the loads."""
    return (bits(y).to(tl.int64) << 32) | (bits(x).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def unpacked(both):
    x = both.to(tl.int32).to(tl.float32, bitcast=True)
    y = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return x, y


@triton.jit
def pin(
    table, steps, channels, d,
    GROUPS: tl.constexpr, PER: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """Zeros as a tile, by a load that is never done: it sets the layout of all that meets it."""
    k = tl.arange(0, TIME)[None, :, None]
    at = (k + tl.arange(0, GROUPS)[:, None, None] * PER) * channels + d[None, None, :]
    return tl.load(table + at, mask=k + steps < 0, other=0)


@triton.jit
def read_outs(table, k, groups, p, PER: tl.constexpr, TIME: tl.constexpr):
    """B and C in a tile, of state p of each group: (groups, TIME, 1) each."""
    n = groups * PER + p
    return unpacked(tl.load(table + n[:, None] * TIME + k[None, :])[:, :, None])
