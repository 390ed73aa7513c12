"""The gated delta rule forward: Triton programs over chunks of L steps, as in chunked.py.

Step i writes u_i = v_i − S̄ᵀ k_i at w_i, S̄ what it finds. With S₀ the state before a chunk, A_ij the
weight in k_i of what was written at w_j before it, P_ij that in q_i up to it, since_i and until_j
the decays from the chunk's begin and to its end,

    U = (I + A)⁻¹ V − R S₀,   R = (I + A)⁻¹ (K ⊙ since),   o = (Q ⊙ since) S₀ + P U
    S_L = decay S₀ + (W ⊙ until)ᵀ U

`prepare` takes all chunks side by side and leaves P, (I + A)⁻¹, Q ⊙ since, R, W ⊙ until and
(I + A)⁻¹ V; `carry` walks along a row, turns the last into U and keeps S₀ of each chunk; `outputs`
reads.

Where an episode begins inside a chunk, weights across it are set to 0, and what passes from and to
other chunks is set to 0 by step. But 0 NaN is NaN: where such a chunk holds anything not below
TAME, products over steps are taken of one episode after another (in `rounds`).

With a gate a key, steps meet where their blocks of 1, 2, 4, … steps join, as in gated_linear, and
as there all at once where no sum of an episode's gates in the chunk is below LOWEST.

Marks (B, T): 0 for a step of no episode, 2 for the first of an episode, 1 for the others. Shapes:
q, k, w (B, T, H, K), v (B, T, H, V), gate (B, T, H, K or 1), states (B·H, chunks, K, V), what is
handed on (B·H, chunks, L, K, V or L), decay (B·H, chunks, K or 1).
"""

import triton
import triton.language as tl

from decision_s4.kernels.triton_chunks import (
    RUNTIME,
    count_wild,
    dot,
    gates_of,
    head_of,
    load,
    meet,
    meet_at_once,
    scalar_decay,
    sums,
    tile,
    wild,
)

BLOCK = tl.constexpr(16)


@triton.jit
def episodes(marks, row, t, steps, lane):
    """Of a chunk from step t on: who belongs to an episode; the number of each step's, 0 for the
    one that goes on from the chunk before; the first number and the last; who begins one."""
    mark = tl.load(marks + row * steps + t + lane, mask=t + lane < steps, other=0)
    episode = tl.cumsum((mark == 2).to(tl.int32), axis=0)
    return mark != 0, episode, tl.min(episode), tl.max(episode), mark == 2


@triton.jit
def weights(
    q, k, w, gate, summed, lane, same, L: tl.constexpr, LEVELS: tl.constexpr,
    PER_KEY: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """P and A, (L, L): weights of what step j wrote in what step i reads (j <= i) and finds
    (j < i), both of the `same` episode; `summed` are its gates in the chunk up to a step."""
    i, j = lane[:, None], lane[None, :]
    if PER_KEY:
        if meet_at_once(summed, w):
            decay, written = tl.exp(summed), tl.trans(w * tl.exp(-summed))
            read = tl.where(same & (j <= i), dot(q * decay, written, PRECISION), 0.0)
            found = tl.where(same & (j < i), dot(k * decay, written, PRECISION), 0.0)
        else:
            read = tl.where(i == j, tl.sum(q * w, axis=1)[:, None], 0.0)
            found = tl.zeros([L, L], tl.float32)
            for level in range(0, LEVELS):
                between, pair = meet(lane, level)
                decay = tl.exp(sums(between, gate, EXACT, True))
                written = tl.trans(w * decay)
                read += tl.where(pair & same, dot(q * decay, written, PRECISION), 0.0)
                found += tl.where(pair & same, dot(k * decay, written, PRECISION), 0.0)
    else:
        decay, written = scalar_decay(gate, lane), tl.trans(w)
        read = tl.where(same & (j <= i), dot(q, written, PRECISION) * decay, 0.0)
        found = tl.where(same & (j < i), dot(k, written, PRECISION) * decay, 0.0)
    return read, found


@triton.jit
def inverse_of(found, lane, same, L: tl.constexpr, JOINS: tl.constexpr):
    """(I + A)⁻¹ of A below the diagonal: blocks of 16 by elimination, all at once, then joined,

        (A₁ 0; B A₂)⁻¹ = (A₁⁻¹ 0; −A₂⁻¹ B A₁⁻¹ A₂⁻¹).

    What explodes in one episode stays in it.
    """
    block = tl.arange(0, L // BLOCK)
    side = tl.arange(0, BLOCK)
    own = block[:, None, None, None] == block[None, None, :, None]
    parts = tl.reshape(found, [L // BLOCK, BLOCK, L // BLOCK, BLOCK])
    a = tl.sum(tl.where(own, parts, 0.0), axis=2)  # (blocks, 16, 16)
    row, column = side[None, :, None], side[None, None, :]
    x = tl.where((row == column) & (block[:, None, None] >= 0), 1.0, 0.0)
    for i in range(0, BLOCK - 1):
        by = tl.sum(tl.where(column == i, a, 0.0), axis=2)
        solved = tl.sum(tl.where(row == i, x, 0.0), axis=1)
        x -= by[:, :, None] * solved[:, None, :]
    x = tl.reshape(tl.where(own, x[:, :, None, :], 0.0), [L, L])
    x = tl.where(same | (lane[:, None] == lane[None, :]), x, 0.0)
    for join in tl.static_range(JOINS):
        _, pair = meet(lane, 4 + join)
        beside = dot(tl.where(pair, found, 0.0), x, "tf32x3")
        x -= tl.where(pair & same, dot(x, beside, "tf32x3"), 0.0)
    return x


@triton.jit(do_not_specialize=RUNTIME)
def prepare(
    q, k, w, v, gate, marks, read, inverse, reading, removed, late, written, decays, cuts,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr, LEVELS: tl.constexpr, PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Of each chunk: P, the inverse (if to KEEP), Q ⊙ since, R, W ⊙ until, inverse V, its decay,
    and where its first and its last episode begin: L and -1 where none does."""
    sequence = tl.program_id(0).to(tl.int64)
    of_chunk = sequence * tl.num_programs(1) + tl.program_id(1)
    head, row, t = sequence % HEADS, sequence // HEADS, tl.program_id(1).to(tl.int64) * L
    lane = tl.arange(0, L)
    i, j = lane[:, None], lane[None, :]
    member, episode, first, last, begins = episodes(marks, row, t, steps, lane)
    q_t = head_of(q, row, t, head, steps, HEADS, K, False)
    k_t = head_of(k, row, t, head, steps, HEADS, K, False)
    w_t = head_of(w, row, t, head, steps, HEADS, K, False)
    v_t = head_of(v, row, t, head, steps, HEADS, V, False)
    apart = 0
    if last > first:  # q stays in its row
        for begin in tl.range(0, K, KEYS, num_stages=1):
            n = begin + tl.arange(0, KEYS)
            inside, at = member[:, None] & (n < K)[None, :], tile(lane, n, HEADS, K, False)
            gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, member, K, PER_KEY)
            apart += wild(k_t, at, inside) + wild(w_t, at, inside) + count_wild(gates)
        for begin in tl.range(0, V, VALUES, num_stages=1):
            m = begin + tl.arange(0, VALUES)
            apart += wild(v_t, tile(lane, m, HEADS, V, False), member[:, None] & (m < V)[None, :])
    tl.store(cuts + of_chunk * 2, tl.min(tl.where(begins, lane, L)))
    tl.store(cuts + of_chunk * 2 + 1, tl.max(tl.where(begins, lane, -1)))
    rounds = tl.where(apart > 0, last - first + 1, 1)
    this = 0
    while this < rounds:
        mine = (apart == 0) | (episode == first + this)
        piece = member & mine
        same = piece[:, None] & piece[None, :] & (episode[:, None] == episode[None, :])
        entering, leaving = (piece & (episode == 0))[:, None], (piece & (episode == last))[:, None]
        reads, found = tl.zeros([L, L], tl.float32), tl.zeros([L, L], tl.float32)
        for begin in tl.range(0, K, KEYS, num_stages=1):
            n = begin + tl.arange(0, KEYS)
            of_keys, to_keys = (n < K)[None, :], tile(lane, n, HEADS, K, False)
            inside, stored = piece[:, None] & of_keys, mine[:, None] & of_keys
            counted = piece & (begins == 0)  # where an episode begins, nothing decays
            gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, counted, K, PER_KEY)
            summed = sums(same & (j <= i), gates, EXACT, PER_KEY)
            since = tl.exp(summed)
            until = tl.exp(sums(j > i, gates, EXACT, PER_KEY))
            at = of_chunk * L * K + lane[:, None] * K + n[None, :]
            qs = tl.where(entering, load(q_t, to_keys, inside) * since, 0.0)
            tl.store(reading + at, qs, mask=stored)
            ks = tl.where(entering, load(k_t, to_keys, inside) * since, 0.0)
            tl.store(removed + at, ks, mask=stored)
            ws = tl.where(leaving, load(w_t, to_keys, inside) * until, 0.0)
            tl.store(late + at, ws, mask=stored)
            decay = tl.exp(tl.sum(gates, axis=0))  # not read where an episode begins
            if PER_KEY:
                tl.store(decays + of_chunk * K + n, decay, mask=n < K)
            else:
                tl.store(decays + of_chunk + tl.arange(0, 1), decay)
            tl.debug_barrier()  # what follows loads again: registers are scarce
            qs, ks = load(q_t, to_keys, inside), load(k_t, to_keys, inside)
            ws = load(w_t, to_keys, inside)
            of_read, of_found = weights(
                qs, ks, ws, gates, summed, lane, same, L, LEVELS, PER_KEY, PRECISION, EXACT
            )
            reads += of_read
            found += of_found
        inverted = inverse_of(found, lane, same, L, LEVELS - 4)
        square, whole = of_chunk * L * L + i * L + j, mine[:, None] & (j < L)
        tl.store(read + square, reads, mask=whole)
        if KEEP:
            tl.store(inverse + square, inverted, mask=whole)
        for begin in tl.range(0, K, KEYS, num_stages=1):
            n = begin + tl.arange(0, KEYS)
            at = of_chunk * L * K + lane[:, None] * K + n[None, :]
            stored = mine[:, None] & (n < K)[None, :]
            ks = load(removed, at, stored)
            tl.debug_barrier()
            tl.store(removed + at, dot(inverted, ks, PRECISION), mask=stored)
        for begin in tl.range(0, V, VALUES, num_stages=1):
            m = begin + tl.arange(0, VALUES)
            there = (m < V)[None, :]
            vs = load(v_t, tile(lane, m, HEADS, V, False), piece[:, None] & there)
            at = of_chunk * L * V + lane[:, None] * V + m[None, :]
            tl.store(written + at, dot(inverted, vs, PRECISION), mask=mine[:, None] & there)
        this += 1


@triton.jit
def passage(cuts, decays, of_chunk, n, K: tl.constexpr, PER_KEY: tl.constexpr):
    """Of a chunk, for those that walk: its cuts, and its decay (K, 1) or (1, 1)."""
    first, last = tl.load(cuts + of_chunk * 2), tl.load(cuts + of_chunk * 2 + 1)
    if PER_KEY:
        decay = tl.load(decays + of_chunk * K + n, mask=n < K, other=0.0)[:, None]
    else:
        decay = tl.load(decays + of_chunk + tl.arange(0, 1))[:, None]
    return first, last, decay


@triton.jit(do_not_specialize=RUNTIME)
def carry(
    removed, late, written, decays, cuts, begin, before, end,
    steps,
    V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr, PER_KEY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From chunk to chunk: S before each, U in place of inverse V, and S at the end.

    Of steps that are in no episode, what is handed on is 0 or, where S is not finite, not read.
    """
    sequence, chunks = tl.program_id(0).to(tl.int64), tl.cdiv(steps, L)
    n, m = tl.arange(0, KEYS), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    lane = tl.arange(0, L)
    of_keys, of_values = (n < K)[None, :], (m < V)[None, :]
    of_table, table = n[:, None] * V + m[None, :], (n < K)[:, None] & of_values
    to_keys, to_values = lane[:, None] * K + n[None, :], lane[:, None] * V + m[None, :]
    s = load(begin + sequence * K * V, of_table, table)
    first, last, decay = passage(cuts, decays, sequence * chunks, n, K, PER_KEY)
    for chunk in range(0, chunks):
        of_chunk = sequence * chunks + chunk
        soon = sequence * chunks + tl.minimum(chunk + 1, chunks - 1)
        first_soon, last_soon, decay_soon = passage(cuts, decays, soon, n, K, PER_KEY)
        tl.store(before + of_chunk * K * V + of_table, s, mask=table)
        rs = load(removed + of_chunk * L * K, to_keys, of_keys)
        ws = load(late + of_chunk * L * K, to_keys, of_keys)
        us = load(written + of_chunk * L * V, to_values, of_values)
        us -= tl.where((lane < first)[:, None], dot(rs, s, PRECISION), 0.0)
        tl.store(written + of_chunk * L * V + to_values, us, mask=of_values)
        us = tl.where((lane >= last)[:, None], us, 0.0)
        s = tl.where(last >= 0, 0.0, s * decay)
        s += dot(tl.trans(ws), us, PRECISION)
        first, last, decay = first_soon, last_soon, decay_soon
    tl.store(end + sequence * K * V + of_table, s, mask=table)


@triton.jit
def per_episode(weights, x, member, episode, first, last, PRECISION: tl.constexpr):
    """weights (L, L), 0 across episodes, times x (L, N); by episode where x is not tame."""
    apart = 0
    if last > first:
        apart = count_wild(x)
    rounds = tl.where(apart > 0, last - first + 1, 1)
    y = tl.zeros_like(x)
    this = 0
    while this < rounds:
        mine = (member & ((apart == 0) | (episode == first + this)))[:, None]
        y += tl.where(mine, dot(weights, tl.where(mine, x, 0.0), PRECISION), 0.0)
        this += 1
    return y


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    read, reading, written, marks, before, o,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o from the state before each chunk and what its steps have written."""
    sequence = tl.program_id(0).to(tl.int64)
    of_chunk = sequence * tl.num_programs(1) + tl.program_id(1)
    head, row, t = sequence % HEADS, sequence // HEADS, tl.program_id(1).to(tl.int64) * L
    n, m = tl.arange(0, KEYS), tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    lane = tl.arange(0, L)
    of_keys, of_values = (n < K)[None, :], (m < V)[None, :]
    member, episode, first, last, _ = episodes(marks, row, t, steps, lane)
    ps = load(read + of_chunk * L * L, lane[:, None] * L + lane[None, :], lane[:, None] < L)
    qs = load(reading + of_chunk * L * K, lane[:, None] * K + n[None, :], of_keys)
    us = load(written + of_chunk * L * V, lane[:, None] * V + m[None, :], of_values)
    s = load(before + of_chunk * K * V, n[:, None] * V + m[None, :], (n < K)[:, None] & of_values)
    out = per_episode(ps, us, member, episode, first, last, PRECISION)
    out += tl.where((member & (episode == 0))[:, None], dot(qs, s, PRECISION), 0.0)
    o_t = head_of(o, row, t, head, steps, HEADS, V, False)
    tl.store(
        o_t + tile(lane, m, HEADS, V, False), out, mask=(t + lane < steps)[:, None] & of_values
    )
