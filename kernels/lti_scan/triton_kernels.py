"""lti_scan and its gradient: a Triton program walks one channel along one row, chunk by chunk.

    y_i = Σ_{j ≤ i} k_{i−j} u_j + r_i · x,   x ← Ā^L x + Σ_j (Ā^{L−1−j} b) u_j

inside a chunk, k_l = c Ā^l b and r_i = c Ā^{i+1}. The matrices stay in registers along the row. An
episode is a segment: y_i takes j of i's segment and x if i goes on with it, the end takes j of the
last segment and x if none began; what is left out is not even multiplied.

Shapes: B rows, T steps, H channels, N real states (N_ with padding), L steps a chunk, K = log2 L.
`order` (B, T): the steps that are valid, in time order; `count` (B,) how many; `segment` (B, T).
`read` and its gradient lie as (H, L / R, N, R).
"""

import triton
import triton.language as tl


@triton.jit
def _steps(order, segment, row, steps, at, inside, none, ORDER: tl.constexpr):
    """Where the valid steps number `at` of a row lie in (B·T), and their segments."""
    place = row * steps + at
    if ORDER:
        place = row * steps + tl.load(order + place, mask=inside, other=0)
    return place, tl.load(segment + place, mask=inside, other=none)


@triton.jit
def _matrix(pointer, n, m, N: tl.constexpr):
    """(N_, N_)"""
    inside = (n < N)[:, None] & (m < N)[None, :]
    return tl.load(pointer + n[:, None] * N + m[None, :], mask=inside, other=0.0)


@triton.jit
def _wide(pointer, n, i, N: tl.constexpr, L: tl.constexpr, R: tl.constexpr):
    """(N_, L) of (L / R, N, R)."""
    at = ((i // R)[None, :] * N + n[:, None]) * R + (i % R)[None, :]
    return tl.load(pointer + at, mask=(n < N)[:, None] & (i < L)[None, :], other=0.0)


@triton.jit
def _store_wide(pointer, value, n, i, N: tl.constexpr, L: tl.constexpr, R: tl.constexpr):
    at = ((i // R)[None, :] * N + n[:, None]) * R + (i % R)[None, :]
    tl.store(pointer + at, value, mask=(n < N)[:, None] & (i < L)[None, :])


@triton.jit
def _respond(
    u, y, order, segment, row, steps, h, H, first, size, x, last, toeplitz, read, ahead,
    L: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Stores a chunk's outputs; what it adds to the state, whether x goes on, its last segment."""
    i = tl.arange(0, L)
    inside = i < size
    place, mine = _steps(order, segment, row, steps, first + i, inside, -1, ORDER)
    u_t = tl.load(u + place * H + h, mask=inside, other=0.0)
    met = (mine[:, None] == mine[None, :]) & (i[:, None] >= i[None, :])
    y_t = tl.sum(tl.where(met, toeplitz * u_t[None, :], 0.0), axis=1)
    y_t += tl.where(mine == last, tl.sum(read * x[:, None], axis=0), 0.0)
    tl.store(y + place * H + h, y_t, mask=inside)

    back = first + size - 1 - i
    place, theirs = _steps(order, segment, row, steps, back, inside, -1, ORDER)
    latest = tl.load(u + place * H + h, mask=inside, other=0.0)
    end = tl.max(tl.where(i == 0, theirs, -1), axis=0)
    gain = tl.sum(tl.where((theirs == end)[None, :], ahead * latest[None, :], 0.0), axis=1)
    return gain, end == last, end


@triton.jit
def _blank(y, row, steps, h, H, count, L: tl.constexpr):
    """Zero at the steps from `count` on."""
    for first in range(count, steps, L):
        i = first + tl.arange(0, L)
        tl.store(y + (row * steps + i) * H + h, tl.zeros([L], tl.float32), mask=i < steps)


@triton.jit(do_not_specialize=["steps", "H", "chunks", "k_stride"])
def forward(
    u, kernel, read, ahead, powers, state, order, segment, count, y, final, before, trail,
    steps, H, chunks, k_stride,
    N: tl.constexpr, N_: tl.constexpr, L: tl.constexpr, K: tl.constexpr,
    R: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """y (B, T, H) and final (B, H, N), from `state`; for the gradient, the states `before` each
    chunk (B, H, chunks, N) and on the way through the last, unfinished one, `trail` (B, H, K, N).
    """
    h, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, m, i = tl.arange(0, N_), tl.arange(0, N_), tl.arange(0, L)
    lag = i[:, None] - i[None, :]
    toeplitz = tl.load(kernel + h * k_stride + lag, mask=lag >= 0, other=0.0)
    ahead_ = _wide(ahead + h * N * L, n, i, N, L, L)
    read_ = _wide(read + h * N * L, n, i, N, L, R)
    power = _matrix(powers + (K * H + h) * N * N, n, m, N)
    of_row = (row * H + h) * N
    x = tl.load(state + of_row + n, mask=n < N, other=0.0)
    last, valid = 0, tl.load(count + row)
    full = valid // L
    before += of_row * chunks
    for chunk in range(0, full):
        tl.store(before + chunk * N + n, x, mask=n < N)
        gain, goes_on, last = _respond(
            u, y, order, segment, row, steps, h, H, chunk * L, L, x, last, toeplitz, read_, ahead_,
            L, ORDER,
        )  # fmt: skip
        x = gain + tl.where(goes_on, tl.sum(power * x[None, :], axis=1), 0.0)
    size = valid - full * L
    if size > 0:
        tl.store(before + full * N + n, x, mask=n < N)
        gain, goes_on, last = _respond(
            u, y, order, segment, row, steps, h, H, full * L, size, x, last, toeplitz, read_,
            ahead_, L, ORDER,
        )  # fmt: skip
        for k in range(0, K):  # Ā^size by the binary digits of size
            tl.store(trail + of_row * K + k * N + n, x, mask=n < N)
            digit = _matrix(powers + (k * H + h) * N * N, n, m, N)
            moved = tl.sum(digit * x[None, :], axis=1)
            x = tl.where(((size >> k) & 1) == 1, moved, x)
        x = gain + tl.where(goes_on, x, 0.0)
    tl.store(final + of_row + n, x, mask=n < N)
    if not ORDER:
        _blank(y, row, steps, h, H, valid, L)


@triton.jit
def _blame(
    u, dy, du, order, segment, row, steps, h, H, first, size, x, g,
    toeplitz, read, ahead, dtoeplitz, dread, dahead,
    L: tl.constexpr, ORDER: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The gradient of a chunk: du stored; sums of the matrices'; dx by its outputs; whether x goes
    on. Steps are taken latest first, but where they meet x.
    """
    i = tl.arange(0, L)
    inside = i < size
    place, mine = _steps(order, segment, row, steps, first + i, inside, -1, ORDER)
    dy_t = tl.load(dy + place * H + h, mask=inside, other=0.0)
    _, last = _steps(order, segment, row, steps, first - 1, first > 0, 0, ORDER)
    reads = (mine == last)[None, :]
    dread += tl.where(reads, x[:, None] * dy_t[None, :], 0.0)
    dx = tl.sum(tl.where(reads, read * dy_t[None, :], 0.0), axis=1)

    back = first + size - 1 - i
    place, theirs = _steps(order, segment, row, steps, back, inside, -1, ORDER)
    end = tl.max(tl.where(i == 0, theirs, -1), axis=0)
    u_t = tl.load(u + place * H + h, mask=inside, other=0.0)
    dy_t = tl.load(dy + place * H + h, mask=inside, other=0.0)
    met = (theirs[:, None] == theirs[None, :]) & (i[:, None] <= i[None, :])
    dtoeplitz += tl.where(met, dy_t[:, None] * u_t[None, :], 0.0)
    du_t = tl.sum(tl.where(met, toeplitz * dy_t[:, None], 0.0), axis=0)
    adds = theirs == end
    if FULL:
        dahead += tl.where(adds[None, :], g[:, None] * u_t[None, :], 0.0)
    du_t += tl.where(adds, tl.sum(ahead * g[:, None], axis=0), 0.0)
    tl.store(du + place * H + h, du_t, mask=inside)
    return dtoeplitz, dread, dahead, dx, end == last


@triton.jit(do_not_specialize=["rows", "steps", "H", "chunks", "k_stride", "dk_stride"])
def backward(
    u, dy, dfinal, kernel, read, ahead, powers, order, segment, count, before, trail,
    du, dstate, dkernel, dread, dahead, dpowers, scratch,
    rows, steps, H, chunks, k_stride, dk_stride,
    N: tl.constexpr, N_: tl.constexpr, L: tl.constexpr, K: tl.constexpr,
    R: tl.constexpr, ORDER: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """du, dstate, and of each group of rows (G, H, …) the gradients of the matrices, those of
    `ahead` and `powers` if FULL; `dpowers` begins as zeros. `scratch` (G, H, L, L).
    """
    h, group, groups = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    n, m, i = tl.arange(0, N_), tl.arange(0, N_), tl.arange(0, L)
    lag = i[None, :] - i[:, None]
    toeplitz = tl.load(kernel + h * k_stride + lag, mask=lag >= 0, other=0.0)
    ahead_ = _wide(ahead + h * N * L, n, i, N, L, L)
    read_ = _wide(read + h * N * L, n, i, N, L, R)
    power = _matrix(powers + (K * H + h) * N * N, n, m, N)
    dtoeplitz, sum_read = tl.zeros([L, L], tl.float32), tl.zeros([N_, L], tl.float32)
    sum_ahead, sum_power = tl.zeros([N_, L], tl.float32), tl.zeros([N_, N_], tl.float32)
    of_group = group * H + h
    square = (n < N)[:, None] & (m < N)[None, :]
    for row in range(group, rows, groups):
        of_row = (row * H + h) * N
        g = tl.load(dfinal + of_row + n, mask=n < N, other=0.0)
        valid = tl.load(count + row)
        full = valid // L
        size = valid - full * L
        states = before + of_row * chunks
        if size > 0:
            x = tl.load(states + full * N + n, mask=n < N, other=0.0)
            dtoeplitz, sum_read, sum_ahead, dx, goes_on = _blame(
                u, dy, du, order, segment, row, steps, h, H, full * L, size, x, g,
                toeplitz, read_, ahead_, dtoeplitz, sum_read, sum_ahead, L, ORDER, FULL,
            )  # fmt: skip
            g = tl.where(goes_on, g, 0.0)
            for j in range(0, K):
                k = K - 1 - j
                taken = ((size >> k) & 1) == 1
                if FULL:
                    x = tl.load(trail + of_row * K + k * N + n, mask=n < N, other=0.0)
                    at = (
                        dpowers
                        + (((group * (K + 1) + k) * H + h) * N + n[:, None]) * N
                        + m[None, :]
                    )
                    adds = square & taken & goes_on
                    old = tl.load(at, mask=adds, other=0.0)
                    tl.store(at, old + g[:, None] * x[None, :], mask=adds)
                digit = _matrix(powers + (k * H + h) * N * N, n, m, N)
                g = tl.where(taken, tl.sum(digit * g[:, None], axis=0), g)
            g += dx
        for done in range(0, full):
            chunk = full - 1 - done
            x = tl.load(states + chunk * N + n, mask=n < N, other=0.0)
            dtoeplitz, sum_read, sum_ahead, dx, goes_on = _blame(
                u, dy, du, order, segment, row, steps, h, H, chunk * L, L, x, g,
                toeplitz, read_, ahead_, dtoeplitz, sum_read, sum_ahead, L, ORDER, FULL,
            )  # fmt: skip
            if FULL:
                sum_power += tl.where(goes_on, g[:, None] * x[None, :], 0.0)
            g = dx + tl.where(goes_on, tl.sum(power * g[:, None], axis=0), 0.0)
        tl.store(dstate + of_row + n, g, mask=n < N)
        if not ORDER:
            _blank(du, row, steps, h, H, valid, L)
    _store_wide(dread + of_group * N * L, sum_read, n, i, N, L, R)
    if FULL:
        _store_wide(dahead + of_group * N * L, sum_ahead, n, i, N, L, L)
        at = dpowers + (((group * (K + 1) + K) * H + h) * N + n[:, None]) * N + m[None, :]
        tl.store(at, sum_power, mask=square)
    scratch += of_group * L * L  # its diagonals' sums
    tl.store(scratch + i[:, None] * L + i[None, :], dtoeplitz)
    tl.debug_barrier()
    column = i[:, None] + i[None, :]
    diagonals = tl.load(scratch + i[:, None] * L + column, mask=column < L, other=0.0)
    tl.store(dkernel + of_group * dk_stride + i, tl.sum(diagonals, axis=0))
