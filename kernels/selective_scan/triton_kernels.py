# ruff: noqa: RUF005 (tuples of Triton grow by addition alone)
"""The fused selective scan and its gradients: Triton programs, a row and a tile of channels each.

A program walks along its row, TIME steps at a time. Lanes lie along channels and steps in a
thread's registers, so that a state's recurrence is plain arithmetic of a thread, and only sums
over channels go across threads.

Forward, a tile is (TIME, CHANNELS) and its recurrence a scan along the first axis: compact, and
`channels` being unspecialised, loads do not vectorise, which would spread steps over lanes.
Rows of small tables are picked by masked sums, which fold away. Backward, where scans in reverse
would shuffle, a tile is a tuple of TIME vectors.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
RUNTIME = ["steps", "channels"]


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + e), e = exp(−|x|), by the series of 2 artanh(e / (2 + e)): error 2e-8."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1 / 11 + q * (1 / 13)
    series = 1 / 7 + q * (1 / 9 + q * series)
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def _time_step(raw, inside, SOFTPLUS: tl.constexpr):
    """Δ; 0 past the row's end, where it passes the state on."""
    if SOFTPLUS:
        raw = _softplus(raw)
    return tl.where(inside, raw, 0.0)


@triton.jit
def _or_zeros(x, d, here, CHANNELS: tl.constexpr, GIVEN: tl.constexpr):
    value = tl.zeros([CHANNELS], tl.float32)
    if GIVEN:
        value = tl.load(x + d, mask=here, other=0.0)
    return value


@triton.jit
def _pick(x, index, i):
    """Row i of x."""
    return tl.sum(tl.where(index[:, None] == i, x, 0.0), axis=0)


@triton.jit
def _place(x, index, i, row):
    """x with row i replaced."""
    return tl.where(index[:, None] == i, row[None, :], x)


@triton.jit
def _times(a, x, CUT: tl.constexpr):
    """a x; with CUT a decay of 0 marks a reset, and drops x even if it is NaN."""
    product = a * x
    if CUT:
        product = tl.where(a == 0.0, 0.0, product)
    return product


@triton.jit
def _follow(a0, h0, a1, h1):
    """h -> a h + x, one step after another."""
    return a1 * a0, a1 * h0 + h1


@triton.jit
def _follow_cut(a0, h0, a1, h1):
    return _times(a1, a0, True), _times(a1, h0, True) + h1


@triton.jit(do_not_specialize=RUNTIME)
def forward(
    u, delta, A, B, C, D, z, bias, state, start, y, final, before,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr, KEEP: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Outputs, final state and, to KEEP, the state before each tile (B, tiles, N, D).

    A (N, D), state and final (B, N, D): with channels last, as all else. STATES: N as a power of 2.
    """
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TIME)
    n = tl.arange(0, STATES)
    here = d < channels
    table = (n < N)[:, None] & here[None, :]
    of_table = n[:, None] * channels + d[None, :]
    h = tl.load(state + row * N * channels + of_table, mask=table, other=0.0)
    shift = _or_zeros(bias, d, here, CHANNELS, HAS_BIAS)
    skip = _or_zeros(D, d, here, CHANNELS, HAS_D)
    at = (row * steps + k)[:, None] * channels + d[None, :]
    inside = (k < steps)[:, None] & here[None, :]
    next_u = tl.load(u + at, mask=inside, other=0.0)
    next_delta = tl.load(delta + at, mask=inside, other=0.0)
    for first in range(0, steps, TIME):
        t = first + k
        at = (row * steps + t)[:, None] * channels + d[None, :]
        inside = (t < steps)[:, None] & here[None, :]
        x = next_u.to(tl.float32)
        dt = _time_step(next_delta.to(tl.float32) + shift[None, :], inside, SOFTPLUS)
        after = (t + TIME < steps)[:, None] & here[None, :]  # the next tile arrives meanwhile
        next_u = tl.load(u + at + TIME * channels, mask=after, other=0.0)
        next_delta = tl.load(delta + at + TIME * channels, mask=after, other=0.0)
        if CUT:
            cut = tl.load(start + row * steps + t, mask=t < steps, other=0) != 0
        if KEEP:
            tile = row * tl.cdiv(steps, TIME) + first // TIME
            tl.store(before + tile * N * channels + of_table, h, mask=table)
        drive = dt * x
        out = skip[None, :] * x
        for i in tl.static_range(N):
            at_i = (row * steps + t) * N + i
            b = tl.load(B + at_i, mask=t < steps, other=0.0).to(tl.float32)
            c = tl.load(C + at_i, mask=t < steps, other=0.0).to(tl.float32)
            rate = tl.load(A + i * channels + d, mask=here, other=0.0) * LOG2E
            a = tl.exp2(dt * rate[None, :])
            if CUT:
                a = tl.where(cut[:, None], 0.0, a)
            entering = _times(a, _pick(h, n, i)[None, :], CUT)
            gain = drive * b[:, None]
            gain = tl.where(k[:, None] == 0, gain + entering, gain)
            if CUT:
                _, hs = tl.associative_scan((a, gain), 0, _follow_cut)
            else:
                _, hs = tl.associative_scan((a, gain), 0, _follow)
            out += hs * c[:, None]
            h = _place(h, n, i, _pick(hs, k, TIME - 1))
        if HAS_Z:
            gate = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
            out = out * gate * _sigmoid(gate)
        tl.store(y + at, out, mask=inside)
    tl.store(final + row * N * channels + of_table, h, mask=table)


@triton.jit
def _within(here, t, steps):
    """Lanes that are `here`, if the row has a step t."""
    return tl.where(here, t, steps) < steps


@triton.jit
def _load_tile(x, at, first, steps, channels, here, TIME: tl.constexpr):
    """x at steps first … first + TIME − 1, a vector each; `at` points to the first."""
    tile = ()
    for k in tl.static_range(TIME):
        inside = _within(here, first + k, steps)
        tile = tile + (tl.load(x + at + k * channels, mask=inside, other=0.0),)
    return tile


@triton.jit
def _load_shared(x, at, first, steps, here, STRIDE: tl.constexpr, TIME: tl.constexpr):
    """As _load_tile, of what is the same for all channels."""
    tile = ()
    for k in tl.static_range(TIME):
        every = at + k * STRIDE + 0 * here.to(tl.int32)
        value = tl.load(x + every, mask=_within(here, first + k, steps), other=0)
        tile = tile + (value.to(tl.float32),)
    return tile


@triton.jit
def backward(
    u, delta, A, B, C, D, z, bias, start, before, dy,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dstate,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients; those summed over rows or channels in parts, a part a program.

    dA (B, N, D), zero before; dstate (B, N, D), the final state's gradient before; dD and dbias
    (B, D); dB and dC (tiles of channels, B, N, T).
    """
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    here = d < channels
    row_of = tl.arange(0, TIME)
    shift = _or_zeros(bias, d, here, CHANNELS, HAS_BIAS)
    skip = _or_zeros(D, d, here, CHANNELS, HAS_D)
    sum_D = tl.zeros([CHANNELS], tl.float32)
    sum_bias = tl.zeros([CHANNELS], tl.float32)
    tiles = tl.cdiv(steps, TIME)
    for earlier in range(0, tiles):
        first = (tiles - 1 - earlier) * TIME
        at = (row * steps + first) * channels + d
        xs = _load_tile(u, at, first, steps, channels, here, TIME)
        raws = _load_tile(delta, at, first, steps, channels, here, TIME)
        douts = _load_tile(dy, at, first, steps, channels, here, TIME)
        if HAS_Z:
            gates = _load_tile(z, at, first, steps, channels, here, TIME)
        if CUT:
            cut = _load_shared(start, row * steps + first, first, steps, here, 1, TIME)
        dt = ()
        drive = ()
        dout = ()
        out = ()
        driven = ()
        d_exponent = ()
        for k in tl.static_range(TIME):
            x = xs[k].to(tl.float32)
            raw = raws[k].to(tl.float32) + shift
            dt = dt + (_time_step(raw, _within(here, first + k, steps), SOFTPLUS),)
            drive = drive + (dt[k] * x,)
            value = douts[k].to(tl.float32)
            if HAS_Z:
                gate = gates[k].to(tl.float32)
                value = value * gate * _sigmoid(gate)
            dout = dout + (value,)
            if HAS_D:
                sum_D += value * x
            out = out + (skip * x,)
            driven = driven + (tl.zeros([CHANNELS], tl.float32),)
            d_exponent = d_exponent + (tl.zeros([CHANNELS], tl.float32),)
        for n in range(0, N):
            b = _load_shared(B, (row * steps + first) * N + n, first, steps, here, N, TIME)
            c = _load_shared(C, (row * steps + first) * N + n, first, steps, here, N, TIME)
            a_n = tl.load(A + n * channels + d, mask=here, other=0.0)
            of_tile = (row * tiles + first // TIME) * N + n
            h = tl.load(before + of_tile * channels + d, mask=here, other=0.0)
            of_row = (row * N + n) * channels + d
            passed = tl.load(dstate + of_row, mask=here, other=0.0)
            flows = tl.load(dA + of_row, mask=here, other=0.0)
            b_parts = tl.zeros([TIME], tl.float32)
            c_parts = tl.zeros([TIME], tl.float32)
            decay = ()
            previous = ()
            sums = ()
            for k in tl.static_range(TIME):
                if CUT:
                    h = tl.where(cut[k] != 0.0, 0.0, h)
                previous = previous + (h,)
                decay = decay + (tl.exp2(dt[k] * (a_n * LOG2E)),)
                h = decay[k] * h + drive[k] * b[k]
                sums = sums + (out[k] + h * c[k],)
                c_parts = tl.where(row_of == k, tl.sum(h * dout[k], axis=0), c_parts)
            out = sums
            sums = ()
            exponents = ()
            for j in tl.static_range(TIME):
                adjoint = passed + dout[TIME - 1 - j] * c[TIME - 1 - j]
                passed = adjoint * decay[TIME - 1 - j]
                flow = passed * previous[TIME - 1 - j]  # dL/d(Δ A)
                if CUT:
                    passed = tl.where(cut[TIME - 1 - j] != 0.0, 0.0, passed)
                flows += flow * dt[TIME - 1 - j]
                sums = (driven[TIME - 1 - j] + adjoint * b[TIME - 1 - j],) + sums
                exponents = (d_exponent[TIME - 1 - j] + flow * a_n,) + exponents
                part = tl.sum(adjoint * drive[TIME - 1 - j], axis=0)
                b_parts = tl.where(row_of == TIME - 1 - j, part, b_parts)
            driven = sums
            d_exponent = exponents
            tl.store(dstate + of_row, passed, mask=here)
            tl.store(dA + of_row, flows, mask=here)
            of_part = ((block * tl.num_programs(0) + row) * N + n) * steps + first + row_of
            tl.store(dB + of_part, b_parts, mask=first + row_of < steps)
            tl.store(dC + of_part, c_parts, mask=first + row_of < steps)
        for k in tl.static_range(TIME):
            inside = _within(here, first + k, steps)
            here_k = at + k * channels
            x = xs[k].to(tl.float32)
            tl.store(du + here_k, dt[k] * driven[k] + skip * dout[k], mask=inside)
            d_raw = x * driven[k] + d_exponent[k]
            if SOFTPLUS:
                d_raw = d_raw * _sigmoid(raws[k].to(tl.float32) + shift)
            d_raw = tl.where(inside, d_raw, 0.0)
            tl.store(ddelta + here_k, d_raw, mask=inside)
            sum_bias += d_raw
            if HAS_Z:
                gate = gates[k].to(tl.float32)
                s = _sigmoid(gate)
                d_gate = douts[k].to(tl.float32) * out[k] * s * (1.0 + gate * (1.0 - s))
                tl.store(dz + here_k, d_gate, mask=inside)
    if HAS_D:
        tl.store(dD + row * channels + d, sum_D, mask=here)
    if HAS_BIAS:
        tl.store(dbias + row * channels + d, sum_bias, mask=here)
