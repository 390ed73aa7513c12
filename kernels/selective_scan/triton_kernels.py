"""The fused selective scan and its gradients: Triton programs, a row and some channels each.

A program walks along its row, TIME steps at a time. Its states are split into groups, of PER each,
that few rows and channels keep the machine busy; `triton_tiles` says how a tile lies in registers.
States before each tile are kept for the backward pass.

What is summed over channels, dB and dC, is summed by halves: with each exchange between lanes, a
lane is left with half of the steps. That takes one shuffle a step and not five.
"""

import triton
import triton.language as tl

from decision_s4.kernels.selective_scan.triton_tiles import (
    LOG2E,
    RUNTIME,
    bits,
    exp2,
    keep,
    or_zeros,
    packed,
    pick,
    pin,
    place,
    read_outs,
    row,
    sigmoid,
    time_step,
    unpacked,
)


@triton.jit(do_not_specialize=["steps", "tiles"])
def pack(B, C, table, steps, tiles, N: tl.constexpr, STATES: tl.constexpr, TIME: tl.constexpr):
    """B and C (B, T, N) -> (B, tiles, STATES, TIME), `packed`; zeros past N and T."""
    rows = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    n = tl.arange(0, STATES)
    k = tl.arange(0, TIME)
    t = tile * TIME + k
    inside = (t < steps)[:, None] & (n < N)[None, :]
    at = (rows * steps + t)[:, None] * N + n[None, :]
    b = tl.load(B + at, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(C + at, mask=inside, other=0.0).to(tl.float32)
    to = table + ((rows * tiles + tile) * STATES + n)[None, :] * TIME + k[:, None]
    tl.store(to, packed(b, c))


@triton.jit
def _states(a, gain, h, kept, k, CUT: tl.constexpr, TIME: tl.constexpr):
    """h before each step, after each, and after all: h <- a h + gain."""
    previous = gain
    states = gain
    for i in tl.static_range(TIME):
        if CUT:
            h = keep(h, pick(kept, k, i))
        previous = place(previous, k, i, h)
        h = tl.fma(row(a, k, i), h, row(gain, k, i))
        states = place(states, k, i, h)
    return previous, states, h


@triton.jit
def _masks(starts, like, CUT: tl.constexpr):
    """For `keep`, as `like`."""
    kept = tl.zeros_like(bits(like))
    if CUT:
        kept = kept + (starts - 1)[None, :, None]
    return kept


@triton.jit
def _outputs(
    table, h, rate, dt, drive, starts, k, q, groups,
    CUT: tl.constexpr, PER: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """C · h of a tile, of each group, and the states after it."""
    kept = _masks(starts, dt, CUT)
    out = tl.zeros_like(dt)
    for p in tl.static_range(PER):
        b, c = read_outs(table, k, groups, p, PER, TIME)
        a = exp2(dt * row(rate, q, p)[:, None, :])
        _, states, last = _states(a, drive * b, row(h, q, p), kept, k, CUT, TIME)
        h = place(h, q, p, last)
        out += states * c
    return out, h


@triton.jit(do_not_specialize=RUNTIME)
def forward(
    u, delta, A, table, D, z, bias, start, state, y, ungated, states, final,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr, KEEP: tl.constexpr,
    N: tl.constexpr, GROUPS: tl.constexpr, PER: tl.constexpr,
    TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Outputs, final state; to KEEP, also states (B, tiles, N, D) and outputs before the gate."""
    of = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TIME)
    q = tl.arange(0, PER)
    groups = tl.arange(0, GROUPS)
    here = d < channels
    tiles = tl.cdiv(steps, TIME)
    shift = or_zeros(bias, d, here, CHANNELS, HAS_BIAS)
    skip = or_zeros(D, d, here, CHANNELS, HAS_D)
    n = groups[:, None, None] * PER + q[None, :, None]
    known = (n < N) & here[None, None, :]
    by_channel = d[None, None, :] * N + n
    by_state = n * channels + d[None, None, :]
    rate = tl.load(A + by_channel, mask=known, other=0.0) * LOG2E
    h = tl.load(state + of * channels * N + by_channel, mask=known, other=0.0)
    start += of * steps
    table += of * tiles * (GROUPS * PER * TIME)
    states += of * tiles * N * channels
    zeros = pin(table, steps, channels, d, GROUPS, PER, TIME)
    at = (of * steps + k)[:, None] * channels + d[None, :]
    inside = (k < steps)[:, None] & here[None, :]
    next_u = tl.load(u + at, mask=inside, other=0.0)
    next_delta = tl.load(delta + at, mask=inside, other=0.0)
    for first in range(0, steps, TIME):
        if KEEP:
            tl.store(states + by_state, h, mask=known)
            states += N * channels
        t = first + k
        at = (of * steps + t)[:, None] * channels + d[None, :]
        inside = (t < steps)[:, None] & here[None, :]
        x = next_u.to(tl.float32)
        dt = time_step(next_delta.to(tl.float32) + shift[None, :], inside, SOFTPLUS)
        later = (t + TIME < steps)[:, None] & here[None, :]  # the next tile arrives meanwhile
        next_u = tl.load(u + at + TIME * channels, mask=later, other=0.0)
        next_delta = tl.load(delta + at + TIME * channels, mask=later, other=0.0)
        if HAS_Z:
            gate = tl.load(z + at, mask=inside, other=0.0)
        starts = k
        cut = False
        if CUT:
            starts = tl.load(start + t, mask=t < steps, other=0).to(tl.int32)
            cut = tl.max(starts, axis=0) != 0
        dts, drives = unpacked(zeros | packed(dt, dt * x)[None, :, :])
        if cut:
            out, h = _outputs(table, h, rate, dts, drives, starts, k, q, groups, True, PER, TIME)
        else:
            out, h = _outputs(table, h, rate, dts, drives, starts, k, q, groups, False, PER, TIME)
        table += GROUPS * PER * TIME
        out = tl.sum(out, axis=0) + skip[None, :] * x
        if HAS_Z:
            if KEEP:
                tl.store(ungated + at, out, mask=inside)
            value = gate.to(tl.float32)
            out = out * value * sigmoid(value)
        tl.store(y + at, out, mask=inside)
    tl.store(final + of * channels * N + by_channel, h, mask=known)


@triton.jit
def _from(x, lanes, WIDTH: tl.constexpr):
    """(groups, channels) of the channel whose number differs in the bit WIDTH."""
    return tl.gather(x, (lanes[None, :] ^ WIDTH) + tl.zeros_like(bits(x)), 1)


@triton.jit
def _summed(x, k, lanes, TIME: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums over channels, by halves: channel c is left with step c TIME / CHANNELS."""
    for level in tl.static_range(1, 6):
        if TIME >> level > 0:
            upper = (lanes[None, :] & (CHANNELS >> level)) != 0
            for i in tl.static_range(TIME >> level):
                low = row(x, k, i)
                high = row(x, k, i + (TIME >> level))
                sent = _from(tl.where(upper, low, high), lanes, CHANNELS >> level)
                x = place(x, k, i, tl.where(upper, high, low) + sent)
    total = row(x, k, 0)
    for level in tl.static_range(1, 6):
        if (TIME >> level == 0) and (CHANNELS >> level > 0):
            total += _from(total, lanes, CHANNELS >> level)
    return total


@triton.jit
def _adjoints(a, own, passed, kept, k, CUT: tl.constexpr, TIME: tl.constexpr):
    """dL/dh after each step, and what of it reaches the step before all."""
    value = passed + row(own, k, TIME - 1)
    adjoint = place(own, k, TIME - 1, value)
    for i in tl.static_range(TIME - 2, -1, -1):
        if CUT:
            value = keep(value * row(a, k, i + 1), pick(kept, k, i + 1)) + row(own, k, i)
        else:
            value = tl.fma(value, row(a, k, i + 1), row(own, k, i))
        adjoint = place(adjoint, k, i, value)
    value = value * row(a, k, 0)
    if CUT:
        value = keep(value, pick(kept, k, 0))
    return adjoint, value


@triton.jit
def _gradients(
    table, h, rate, dt, drive, dout, passed, flows, starts, k, q, groups, lanes,
    CUT: tl.constexpr, PER: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of a tile: dL/d(Δ u) and dL/dΔ by way of A, log2(e) times; what goes on to A, dB, dC."""
    kept = _masks(starts, dt, CUT)
    driven = tl.zeros_like(dt)
    exponent = tl.zeros_like(dt)
    dB = flows
    dC = flows
    for p in tl.range(0, PER):
        b, c = read_outs(table, k, groups, p, PER, TIME)
        rates = row(rate, q, p)[:, None, :]
        a = exp2(dt * rates)
        previous, states, _ = _states(a, drive * b, row(h, q, p), kept, k, CUT, TIME)
        dC = place(dC, q, p, _summed(states * dout, k, lanes, TIME, CHANNELS))
        adjoint, goes_on = _adjoints(a, dout * c, row(passed, q, p), kept, k, CUT, TIME)
        flow = adjoint * a * previous  # dL/d(Δ A)
        driven += adjoint * b
        exponent += flow * rates
        passed = place(passed, q, p, goes_on)
        flows = place(flows, q, p, row(flows, q, p) + tl.sum(flow * dt, axis=1))
        dB = place(dB, q, p, _summed(adjoint * drive, k, lanes, TIME, CHANNELS))
    return driven, exponent, passed, flows, dB, dC


@triton.jit(do_not_specialize=RUNTIME)
def backward(
    u, delta, A, table, D, z, bias, start, ungated, states, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dstate,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr,
    N: tl.constexpr, GROUPS: tl.constexpr, PER: tl.constexpr,
    TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients; those summed over rows or channels in parts, a part a program.

    dA (B, D, N); dD and dbias (B, D); dB and dC (blocks of channels, B, N, T).
    """
    of = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    lanes = tl.arange(0, CHANNELS)
    d = block * CHANNELS + lanes
    k = tl.arange(0, TIME)
    q = tl.arange(0, PER)
    groups = tl.arange(0, GROUPS)
    here = d < channels
    tiles = tl.cdiv(steps, TIME)
    shift = or_zeros(bias, d, here, CHANNELS, HAS_BIAS)
    skip = or_zeros(D, d, here, CHANNELS, HAS_D)
    sum_D = tl.zeros([TIME, CHANNELS], tl.float32)
    sum_bias = tl.zeros([TIME, CHANNELS], tl.float32)
    n = groups[:, None, None] * PER + q[None, :, None]
    known = (n < N) & here[None, None, :]
    by_channel = of * channels * N + d[None, None, :] * N + n
    by_state = n * channels + d[None, None, :]
    rate = tl.load(A + d[None, None, :] * N + n, mask=known, other=0.0) * LOG2E
    passed = tl.load(dfinal + by_channel, mask=known, other=0.0)
    flows = tl.zeros_like(passed)
    part = (block * tl.num_programs(1) + of) * N * steps
    zeros = pin(table, steps, channels, d, GROUPS, PER, TIME)
    for back in range(0, tiles):
        tile = tiles - 1 - back
        t = tile * TIME + k
        at = (of * steps + t)[:, None] * channels + d[None, :]
        inside = (t < steps)[:, None] & here[None, :]
        h = tl.load(states + (of * tiles + tile) * N * channels + by_state, mask=known, other=0.0)
        x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        raw = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        dout = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_Z:
            gate = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
            out = tl.load(ungated + at, mask=inside, other=0.0).to(tl.float32)
            s = sigmoid(gate)
            tl.store(dz + at, dout * out * s * (1.0 + gate * (1.0 - s)), mask=inside)
            dout = dout * gate * s
        starts = k
        cut = False
        if CUT:
            starts = tl.load(start + of * steps + t, mask=t < steps, other=0).to(tl.int32)
            cut = tl.max(starts, axis=0) != 0
        dt = time_step(raw, inside, SOFTPLUS)
        dts, drives = unpacked(zeros | packed(dt, dt * x)[None, :, :])
        douts, _ = unpacked(zeros | packed(dout, dout)[None, :, :])
        of_tile = table + (of * tiles + tile) * (GROUPS * PER * TIME)
        if cut:
            driven, exponent, passed, flows, sum_B, sum_C = _gradients(
                of_tile, h, rate, dts, drives, douts, passed, flows, starts, k, q, groups, lanes,
                True, PER, TIME, CHANNELS,
            )  # fmt: skip
        else:
            driven, exponent, passed, flows, sum_B, sum_C = _gradients(
                of_tile, h, rate, dts, drives, douts, passed, flows, starts, k, q, groups, lanes,
                False, PER, TIME, CHANNELS,
            )  # fmt: skip
        summed = tile * TIME + lanes * TIME // CHANNELS
        leads = (n < N) & ((summed < steps) & (lanes * TIME % CHANNELS == 0))[None, None, :]
        tl.store(dB + part + n * steps + summed[None, None, :], sum_B, mask=leads)
        tl.store(dC + part + n * steps + summed[None, None, :], sum_C, mask=leads)
        driven = tl.sum(driven, axis=0)
        if HAS_D:
            sum_D += dout * x
        tl.store(du + at, dt * driven + skip[None, :] * dout, mask=inside)
        d_raw = x * driven + tl.sum(exponent, axis=0) * (1 / LOG2E)
        if SOFTPLUS:
            d_raw = d_raw * sigmoid(raw)
        d_raw = tl.where(inside, d_raw, 0.0)
        tl.store(ddelta + at, d_raw, mask=inside)
        sum_bias += d_raw
    tl.store(dA + by_channel, flows, mask=known)
    tl.store(dstate + by_channel, passed, mask=known)
    if HAS_D:
        tl.store(dD + of * channels + d, tl.sum(sum_D, axis=0), mask=here)
    if HAS_BIAS:
        tl.store(dbias + of * channels + d, tl.sum(sum_bias, axis=0), mask=here)
