"""The fused selective scan and its gradients, as Triton programs: one row, a tile of channels each.

Shapes: TIME steps and CHANNELS channels in a tile, N states of which STATES >= N is a power of two.
A program walks along its row in tiles of TIME steps. In a tile, each state's recurrence is a scan
over the steps, which lie in one thread: with `channels` unspecialised, loads do not vectorise, and
a warp's lanes lie along channels. Rows of small tables are picked by masked sums, which fold away.

A decay of 0 marks a reset in the scans with CUT: what lies beyond may be NaN, so it is dropped
where a product would keep it.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
RUNTIME = ["steps", "channels"]


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
    """a x, and 0 for a = 0 whatever x is."""
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


@triton.jit
def _remember(a0, h0, k0, p0, a1, h1, k1, p1):
    """As _follow; k h + p is the state before the last step."""
    return a1 * a0, a1 * h0 + h1, k1 * a0, k1 * h0 + p1


@triton.jit
def _remember_cut(a0, h0, k0, p0, a1, h1, k1, p1):
    h, p = _times(a1, h0, True) + h1, _times(k1, h0, True) + p1
    return _times(a1, a0, True), h, _times(k1, a0, True), p


@triton.jit
def _precede(a1, k1, v1, a0, k0, v0):
    """Adjoint v of each state, latest first: v0 = dy C + a1 v1. k: the decays past the first."""
    passed = k0 * a1
    return a0, passed * k1, v0 + passed * v1


@triton.jit
def _precede_cut(a1, k1, v1, a0, k0, v0):
    passed = _times(k0, a1, True)
    return a0, _times(passed, k1, True), v0 + _times(passed, v1, True)


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
    """Δ; 0 outside, where it passes the state on."""
    if SOFTPLUS:
        raw = _softplus(raw)
    return tl.where(inside, raw, 0.0)


@triton.jit(do_not_specialize=RUNTIME)
def forward(
    u, delta, A, B, C, D, z, bias, state, start, y, final, before,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr, KEEP: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Outputs, final state and, to KEEP, the state before each tile (B, tiles, N, D)."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TIME)
    n = tl.arange(0, STATES)
    here = d < channels
    table = (n < N)[:, None] & here[None, :]
    exponent = tl.load(A + d[None, :] * N + n[:, None], mask=table, other=0.0) * LOG2E
    h = tl.load(state + (row * channels + d[None, :]) * N + n[:, None], mask=table, other=0.0)
    shift = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + d, mask=here, other=0.0)
    skip = tl.zeros([CHANNELS], tl.float32)
    if HAS_D:
        skip = tl.load(D + d, mask=here, other=0.0)
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
        after = (t + TIME < steps)[:, None] & here[None, :]  # the next tile, loaded meanwhile
        ahead = at + TIME * channels.to(tl.int64)
        next_u = tl.load(u + ahead, mask=after, other=0.0)
        next_delta = tl.load(delta + ahead, mask=after, other=0.0)
        if CUT:
            cut = tl.load(start + row * steps + t, mask=t < steps, other=0) != 0
        if KEEP:
            tile = row * tl.cdiv(steps, TIME) + first // TIME
            tl.store(before + (tile * N + n[:, None]) * channels + d[None, :], h, mask=table)
        drive = dt * x
        out = skip[None, :] * x
        for i in tl.static_range(N):
            b = tl.load(B + (row * steps + t) * N + i, mask=t < steps, other=0.0).to(tl.float32)
            c = tl.load(C + (row * steps + t) * N + i, mask=t < steps, other=0.0).to(tl.float32)
            a = tl.exp2(dt * _pick(exponent, n, i)[None, :])
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
    tl.store(final + (row * channels + d[None, :]) * N + n[:, None], h, mask=table)


@triton.jit(do_not_specialize=RUNTIME)
def backward(
    u, delta, A, B, C, D, z, bias, start, before, dy, dfinal,
    du, ddelta, dA, dB, dC, dD, dz, dbias, dstate,
    steps, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    CUT: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients; those summed over rows or channels in parts, a part a program.

    dA (B, D, N), dD and dbias (B, D); dB and dC (tiles of channels, B, N, T).
    """
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    block = tl.program_id(1)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, TIME)
    n = tl.arange(0, STATES)
    here = d < channels
    table = (n < N)[:, None] & here[None, :]
    of_row = (row * channels + d[None, :]) * N + n[:, None]
    a_table = tl.load(A + d[None, :] * N + n[:, None], mask=table, other=0.0)
    dh = tl.load(dfinal + of_row, mask=table, other=0.0)
    sum_A = tl.zeros([STATES, CHANNELS], tl.float32)
    sum_D = tl.zeros([CHANNELS], tl.float32)
    sum_bias = tl.zeros([CHANNELS], tl.float32)
    shift = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + d, mask=here, other=0.0)
    skip = tl.zeros([CHANNELS], tl.float32)
    if HAS_D:
        skip = tl.load(D + d, mask=here, other=0.0)
    tiles = tl.cdiv(steps, TIME)
    for reverse in range(0, tiles):
        tile = tiles - 1 - reverse
        t = tile * TIME + k
        at = (row * steps + t)[:, None] * channels + d[None, :]
        inside = (t < steps)[:, None] & here[None, :]
        x = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
        raw = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        dt = _time_step(raw, inside, SOFTPLUS)
        dout = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_Z:
            gate = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
            dout = dout * gate * _sigmoid(gate)
        of_tile = ((row * tiles + tile) * N + n[:, None]) * channels + d[None, :]
        h = tl.load(before + of_tile, mask=table, other=0.0)
        one = tl.full([TIME, CHANNELS], 1.0, tl.float32)
        follows = one
        if CUT:
            cut = tl.load(start + row * steps + t, mask=t < steps, other=0) != 0
            follows = tl.where(cut[:, None], 0.0, one)
        drive = dt * x
        out = skip[None, :] * x
        driven = tl.zeros([TIME, CHANNELS], tl.float32)
        d_exponent = tl.zeros([TIME, CHANNELS], tl.float32)
        for i in tl.static_range(N):
            b = tl.load(B + (row * steps + t) * N + i, mask=t < steps, other=0.0).to(tl.float32)
            c = tl.load(C + (row * steps + t) * N + i, mask=t < steps, other=0.0).to(tl.float32)
            a_i = _pick(a_table, n, i)[None, :]
            a = tl.exp2(dt * (a_i * LOG2E))
            if CUT:
                a = tl.where(cut[:, None], 0.0, a)
            h_i = _pick(h, n, i)[None, :]
            gain = drive * b[:, None]
            gain = tl.where(k[:, None] == 0, gain + _times(a, h_i, CUT), gain)
            entering = tl.where(k[:, None] == 0, _times(follows, h_i, CUT), 0.0)
            adjoint = dout * c[:, None]
            adjoint = tl.where(k[:, None] == TIME - 1, adjoint + _pick(dh, n, i)[None, :], adjoint)
            if CUT:
                _, hs, _, previous = tl.associative_scan(
                    (a, gain, follows, entering), 0, _remember_cut
                )
                _, _, v = tl.associative_scan((a, one, adjoint), 0, _precede_cut, reverse=True)
            else:
                _, hs, _, previous = tl.associative_scan((a, gain, follows, entering), 0, _remember)
                _, _, v = tl.associative_scan((a, one, adjoint), 0, _precede, reverse=True)
            passed = _times(a, v, CUT)
            flow = passed * previous  # dL/d(Δ A)
            dh = _place(dh, n, i, _pick(passed, k, 0))
            out += hs * c[:, None]
            driven += v * b[:, None]
            d_exponent += flow * a_i
            sum_A = _place(sum_A, n, i, _pick(sum_A, n, i) + tl.sum(flow * dt, axis=0))
            part = ((block * rows + row) * N + i) * steps + t
            tl.store(dB + part, tl.sum(v * drive, axis=1), mask=t < steps)
            tl.store(dC + part, tl.sum(hs * dout, axis=1), mask=t < steps)
        tl.store(du + at, dt * driven + skip[None, :] * dout, mask=inside)
        d_raw = x * driven + d_exponent
        if SOFTPLUS:
            d_raw = d_raw * _sigmoid(raw)
        d_raw = tl.where(inside, d_raw, 0.0)
        tl.store(ddelta + at, d_raw, mask=inside)
        if HAS_Z:
            incoming = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
            s = _sigmoid(gate)
            tl.store(dz + at, incoming * out * s * (1.0 + gate * (1.0 - s)), mask=inside)
        if HAS_D:
            sum_D += tl.sum(dout * x, axis=0)
        if HAS_BIAS:
            sum_bias += tl.sum(d_raw, axis=0)
    tl.store(dA + of_row, sum_A, mask=table)
    tl.store(dstate + of_row, dh, mask=table)
    if HAS_D:
        tl.store(dD + row * channels + d, sum_D, mask=here)
    if HAS_BIAS:
        tl.store(dbias + row * channels + d, sum_bias, mask=here)
