"""The gradients of triton_forward.py, in its names, dS_L that of the state after a chunk:

    dU = Pᵀ dO + (W ⊙ until) dS_L,   dV = (I + A)⁻ᵀ dU,   dP = dO Uᵀ,   dA = −dV Uᵀ
    dS₀ = decay dS_L + (Q ⊙ since)ᵀ dO − Rᵀ dU

`reach` takes Pᵀ dO of all chunks; `carry_back` walks along a row, turns it into dU and keeps dS_L
of each chunk; `value_gradients` leaves dV, dP and dA; `key_gradients` goes on to q, k, w and the
gates. A gate's gradient is the sum over what its decay lies in, gathered by the transposed matrices
of zeros and ones.
"""

import triton
import triton.language as tl

from decision_s4.kernels.delta_rule.triton_forward import (
    episodes,
    passage,
    per_episode,
)
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
)


@triton.jit(do_not_specialize=RUNTIME)
def reach(
    read, marks, do, d_written,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, L: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Pᵀ dO."""
    sequence = tl.program_id(0).to(tl.int64)
    of_chunk = sequence * tl.num_programs(1) + tl.program_id(1)
    head, row, t = sequence % HEADS, sequence // HEADS, tl.program_id(1).to(tl.int64) * L
    m, lane = tl.program_id(2) * VALUES + tl.arange(0, VALUES), tl.arange(0, L)
    of_values = (m < V)[None, :]
    member, episode, first, last, _ = episodes(marks, row, t, steps, lane)
    ps = load(read + of_chunk * L * L, lane[:, None] * L + lane[None, :], lane[:, None] < L)
    do_t = head_of(do, row, t, head, steps, HEADS, V, False)
    dos = load(do_t, tile(lane, m, HEADS, V, False), member[:, None] & of_values)
    dus = per_episode(tl.trans(ps), dos, member, episode, first, last, PRECISION)
    at = of_chunk * L * V + lane[:, None] * V + m[None, :]
    tl.store(d_written + at, dus, mask=of_values)


@triton.jit(do_not_specialize=RUNTIME)
def carry_back(
    reading, removed, late, decays, cuts, marks, do, d_written, begin, after, end,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr, PER_KEY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the last chunk to the first: dS after each, dU in place of Pᵀ dO, and dS at the end."""
    sequence = tl.program_id(0).to(tl.int64)
    head, row, chunks = sequence % HEADS, sequence // HEADS, tl.cdiv(steps, L)
    n, m = tl.arange(0, KEYS), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    lane = tl.arange(0, L)
    of_keys, of_values = (n < K)[None, :], (m < V)[None, :]
    of_table, table = n[:, None] * V + m[None, :], (n < K)[:, None] & of_values
    to_keys, to_values = lane[:, None] * K + n[None, :], lane[:, None] * V + m[None, :]
    to_steps = tile(lane, m, HEADS, V, False)
    ds = load(begin + sequence * K * V, of_table, table)
    to_marks = marks + row * steps + lane
    at = sequence * chunks + chunks - 1
    first, last, decay = passage(cuts, decays, at, n, K, PER_KEY)
    mark = tl.load(to_marks + (chunks - 1) * L, mask=(chunks - 1) * L + lane < steps, other=0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        of_chunk = sequence * chunks + chunk
        soon = tl.maximum(chunk - 1, 0)
        first_soon, last_soon, decay_soon = passage(
            cuts, decays, sequence * chunks + soon, n, K, PER_KEY
        )
        mark_soon = tl.load(to_marks + soon * L, mask=soon * L + lane < steps, other=0)
        tl.store(after + of_chunk * K * V + of_table, ds, mask=table)
        ws = load(late + of_chunk * L * K, to_keys, of_keys)
        rs = load(removed + of_chunk * L * K, to_keys, of_keys)
        qs = load(reading + of_chunk * L * K, to_keys, of_keys)
        dus = load(d_written + of_chunk * L * V, to_values, of_values)
        do_t = head_of(do, row, chunk * L, head, steps, HEADS, V, False)
        dos = load(do_t, to_steps, (chunk * L + lane < steps)[:, None] & of_values)
        dus += tl.where((lane >= last)[:, None], dot(ws, ds, PRECISION), 0.0)
        tl.store(d_written + of_chunk * L * V + to_values, dus, mask=of_values)
        ds = tl.where(last >= 0, 0.0, ds * decay)
        entering = ((mark != 0) & (lane < first))[:, None]
        ds += dot(tl.trans(qs), tl.where(entering, dos, 0.0), PRECISION)
        ds -= dot(tl.trans(rs), tl.where(entering, dus, 0.0), PRECISION)
        first, last, decay, mark = first_soon, last_soon, decay_soon, mark_soon
    tl.store(end + sequence * K * V + of_table, ds, mask=table)


@triton.jit(do_not_specialize=RUNTIME)
def value_gradients(
    inverse, written, marks, do, d_written, dv, d_read, d_found,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, VALUES: tl.constexpr, L: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dV, dP and dA."""
    sequence = tl.program_id(0).to(tl.int64)
    of_chunk = sequence * tl.num_programs(1) + tl.program_id(1)
    head, row, t = sequence % HEADS, sequence // HEADS, tl.program_id(1).to(tl.int64) * L
    lane = tl.arange(0, L)
    i, j = lane[:, None], lane[None, :]
    member, episode, first, last, _ = episodes(marks, row, t, steps, lane)
    inverted = tl.trans(load(inverse + of_chunk * L * L, i * L + j, i < L))
    do_t = head_of(do, row, t, head, steps, HEADS, V, False)
    dv_t = head_of(dv, row, t, head, steps, HEADS, V, False)
    by_read, by_found = tl.zeros([L, L], tl.float32), tl.zeros([L, L], tl.float32)
    for begin in range(0, V, VALUES):
        m = begin + tl.arange(0, VALUES)
        there, to_steps = (m < V)[None, :], tile(lane, m, HEADS, V, False)
        at = of_chunk * L * V + lane[:, None] * V + m[None, :]
        dus, us = load(d_written, at, there), load(written, at, there)
        dos = load(do_t, to_steps, member[:, None] & there)
        dvs = per_episode(inverted, dus, member, episode, first, last, PRECISION)
        tl.store(dv_t + to_steps, dvs, mask=(t + lane < steps)[:, None] & there)
        by_read += dot(dos, tl.trans(us), PRECISION)
        by_found -= dot(dvs, tl.trans(us), PRECISION)
    same = member[:, None] & member[None, :] & (episode[:, None] == episode[None, :])
    at = of_chunk * L * L + i * L + j
    tl.store(d_read + at, tl.where(same & (j <= i), by_read, 0.0))
    tl.store(d_found + at, tl.where(same & (j < i), by_found, 0.0))


@triton.jit(do_not_specialize=["steps", "rows"])
def key_gradients(
    q, k, w, gate, marks, written, before, after, do, dv, d_read, d_found, dq, dk, dw, dgate,
    steps, rows,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr, LEVELS: tl.constexpr, PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dQ, dK, dW and the gates' of a block of KEYS; of one gate a head, the block's part."""
    sequence = tl.program_id(0).to(tl.int64)
    of_chunk = sequence * tl.num_programs(1) + tl.program_id(1)
    head, row, t = sequence % HEADS, sequence // HEADS, tl.program_id(1).to(tl.int64) * L
    n, lane = tl.program_id(2) * KEYS + tl.arange(0, KEYS), tl.arange(0, L)
    i, j = lane[:, None], lane[None, :]
    of_keys, stored = (n < K)[None, :], (t + lane < steps)[:, None] & (n < K)[None, :]
    member, episode, first, last, begins = episodes(marks, row, t, steps, lane)
    to_keys = tile(lane, n, HEADS, K, False)
    q_t, k_t = (
        head_of(q, row, t, head, steps, HEADS, K, False),
        head_of(k, row, t, head, steps, HEADS, K, False),
    )
    w_t = head_of(w, row, t, head, steps, HEADS, K, False)
    do_t, dv_t = (
        head_of(do, row, t, head, steps, HEADS, V, False),
        head_of(dv, row, t, head, steps, HEADS, V, False),
    )
    reads, finds = tl.zeros([L, KEYS], tl.float32), tl.zeros([L, KEYS], tl.float32)
    writes, through = tl.zeros([L, KEYS], tl.float32), tl.zeros([KEYS], tl.float32)
    for begin in range(0, V, VALUES):
        m = begin + tl.arange(0, VALUES)
        there, to_steps = (m < V)[None, :], tile(lane, m, HEADS, V, False)
        us = load(written + of_chunk * L * V, lane[:, None] * V + m[None, :], there)
        dos = load(do_t, to_steps, member[:, None] & there)
        dvs = load(dv_t, to_steps, member[:, None] & there)
        of_table, table = n[:, None] * V + m[None, :], (n < K)[:, None] & there
        s = load(before + of_chunk * K * V, of_table, table)
        ds = load(after + of_chunk * K * V, of_table, table)
        reads += dot(dos, tl.trans(s), PRECISION)
        finds -= dot(dvs, tl.trans(s), PRECISION)
        writes += dot(us, tl.trans(ds), PRECISION)
        through += tl.sum(s * ds, axis=1)
    entering, leaving = (member & (episode == 0))[:, None], (member & (episode == last))[:, None]
    reads, finds = tl.where(entering, reads, 0.0), tl.where(entering, finds, 0.0)
    writes, through = tl.where(leaving, writes, 0.0), tl.where(last > 0, 0.0, through)
    by_read = load(d_read + of_chunk * L * L, i * L + j, i < L)
    by_found = load(d_found + of_chunk * L * L, i * L + j, i < L)
    apart = 0
    if last > first:
        inside = member[:, None] & of_keys
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, member, K, PER_KEY)
        apart = count_wild(load(q_t, to_keys, inside)) + count_wild(load(k_t, to_keys, inside))
        apart += count_wild(load(w_t, to_keys, inside)) + count_wild(gates)
        apart += count_wild(reads) + count_wild(finds) + count_wild(writes)
        apart += count_wild(by_read) + count_wild(by_found)
    rounds = tl.where(apart > 0, last - first + 1, 1)
    this = 0
    while this < rounds:
        mine = (apart == 0) | (episode == first + this)
        piece, own = member & mine, mine[:, None]
        inside = piece[:, None] & of_keys
        qs, ks = load(q_t, to_keys, inside), load(k_t, to_keys, inside)
        ws = load(w_t, to_keys, inside)
        counted = piece & (begins == 0)
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, counted, K, PER_KEY)
        same = piece[:, None] & piece[None, :] & (episode[:, None] == episode[None, :])
        summed = sums(same & (j <= i), gates, EXACT, PER_KEY)
        since = tl.exp(summed)
        until = tl.exp(sums(j > i, gates, EXACT, PER_KEY))
        d_query, d_key = tl.where(own, reads * since, 0.0), tl.where(own, finds * since, 0.0)
        d_write = tl.where(own, writes * until, 0.0)
        of_since, of_until = qs * d_query + ks * d_key, ws * d_write
        of_total = through * tl.exp(tl.sum(gates, axis=0))
        met_read, met_found = tl.where(own, by_read, 0.0), tl.where(own, by_found, 0.0)
        if PER_KEY:
            d_gate = sums(j < i, of_until, EXACT, True) + of_total[None, :]
            itself = tl.sum(tl.where(i == j, met_read, 0.0), axis=1)[:, None]
            d_query += itself * ws
            d_write += itself * qs
            if meet_at_once(summed, ws):
                met_read, growth = tl.where(j < i, met_read, 0.0), tl.exp(-summed)
                w_growth = ws * growth
                more_query = dot(met_read, w_growth, PRECISION) * since
                more_key = dot(met_found, w_growth, PRECISION) * since
                more_write = dot(tl.trans(met_read), qs * since, PRECISION)
                more_write += dot(tl.trans(met_found), ks * since, PRECISION)
                more_write *= growth
                d_query += more_query
                d_key += more_key
                d_write += more_write
                flow = of_since + qs * more_query + ks * more_key - ws * more_write
                d_gate += sums(same & (j >= i), flow, EXACT, True)
            else:
                d_gate += sums(j >= i, of_since, EXACT, True)
                for level in range(0, LEVELS):
                    between, pair = meet(lane, level)
                    decay = tl.exp(sums(between, gates, EXACT, True))
                    pair_read = tl.where(pair, met_read, 0.0)
                    pair_found = tl.where(pair, met_found, 0.0)
                    w_decay = ws * decay
                    more_query = dot(pair_read, w_decay, PRECISION) * decay
                    more_key = dot(pair_found, w_decay, PRECISION) * decay
                    more_write = dot(tl.trans(pair_read), qs * decay, PRECISION)
                    more_write += dot(tl.trans(pair_found), ks * decay, PRECISION)
                    more_write *= decay
                    d_query += more_query
                    d_key += more_key
                    d_write += more_write
                    of_decay = qs * more_query + ks * more_key + ws * more_write
                    d_gate += sums(tl.trans(between), of_decay, EXACT, True)
            dgate_t = head_of(dgate, row, t, head, steps, HEADS, K, False)
            d_gate = tl.where(counted[:, None], d_gate, 0.0)
            tl.store(dgate_t + to_keys, d_gate, mask=own & stored)
        else:
            decay = scalar_decay(gates, lane)
            crossing = tl.where(j < i, dot(qs, tl.trans(ws), PRECISION) * met_read, 0.0)
            crossing += dot(ks, tl.trans(ws), PRECISION) * met_found
            crossing *= decay
            met_read, met_found = met_read * decay, met_found * decay
            d_query += dot(met_read, ws, PRECISION)
            d_key += dot(met_found, ws, PRECISION)
            d_write += dot(tl.trans(met_read), qs, PRECISION)
            d_write += dot(tl.trans(met_found), ks, PRECISION)
            flow = tl.sum(of_since, axis=1) + tl.sum(crossing, axis=1) - tl.sum(crossing, axis=0)
            d_gate = tl.sum(tl.where(same & (j >= i), flow[None, :], 0.0), axis=1)
            d_gate += tl.sum(tl.where(j < i, tl.sum(of_until, axis=1)[None, :], 0.0), axis=1)
            d_gate = tl.where(counted, d_gate + tl.sum(of_total, axis=0), 0.0)
            part = tl.program_id(2) * rows
            dgate_t = head_of(dgate, part + row, t, head, steps, HEADS, 1, False)
            tl.store(dgate_t + lane * HEADS, d_gate, mask=mine & (t + lane < steps))
        d_query, d_key = (
            tl.where(piece[:, None], d_query, 0.0),
            tl.where(piece[:, None], d_key, 0.0),
        )
        d_write = tl.where(piece[:, None], d_write, 0.0)
        dq_t = head_of(dq, row, t, head, steps, HEADS, K, False)
        dk_t = head_of(dk, row, t, head, steps, HEADS, K, False)
        dw_t = head_of(dw, row, t, head, steps, HEADS, K, False)
        tl.store(dq_t + to_keys, d_query, mask=own & stored)
        tl.store(dk_t + to_keys, d_key, mask=own & stored)
        tl.store(dw_t + to_keys, d_write, mask=own & stored)
        this += 1
