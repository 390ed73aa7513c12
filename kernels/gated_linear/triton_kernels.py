# ruff: noqa: RET505 (Triton compiles what follows a return too)
"""Gated linear attention and its gradients: Triton programs over chunks of L steps.

`carry` walks along a row and keeps the state before each chunk, or in reverse its gradient after
each; `outputs` and `gradients` take all chunks side by side. Where an episode begins inside a chunk
its gate is CUT, so that decays across it are exactly 0; but 0 NaN is NaN: where a chunk with such a
step holds anything not below TAME, they work on one episode after another and read no other.

A decay from step j to step i is exp of a sum of gates, and every such sum is a product with a
matrix of zeros and ones: no difference of cumulative sums, so nothing overflows and nothing
cancels. With a gate a key, steps i and j meet where their blocks of h = 1, 2, 4, … steps join, as
in chunked.py; but all at once, by exp of a sum and of its negative, where no sum of the chunk is
below LOWEST: exp(−LOWEST) times TAME is far from overflow, and no term of a product grows.

Marks (B, T): 0 for a step of no episode, 2 for the first of an episode, 1 for the others.
Shapes: q, k (B, T, H or 1, K), v (B, T, H, V), gate (B, T, H, K or 1), states (B·H, chunks, K, V).
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

CUT = tl.constexpr(-10_000.0)


@triton.jit(do_not_specialize=RUNTIME)
def carry(
    x, y, gate, marks, begin, kept, end,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, PER_KEY: tl.constexpr, SHARED: tl.constexpr, REVERSE: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """S ← decay S + (x ⊙ decay)ᵀ y from chunk to chunk; S before each goes to `kept`.

    Forward x, y are k, v; in REVERSE q and the gradient of o, and S is the state's gradient.
    """
    sequence = tl.program_id(0).to(tl.int64)
    head, row = sequence % HEADS, sequence // HEADS
    n, v = tl.arange(0, KEYS), tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    lane = tl.arange(0, L)
    table = (n < K)[:, None] & (v < V)[None, :]
    of_table = n[:, None] * V + v[None, :]
    chunks = tl.cdiv(steps, L)
    to_keys, to_values = tile(lane, n, HEADS, K, SHARED), tile(lane, v, HEADS, V, False)
    s = load(begin + sequence * K * V, of_table, table)
    for i in range(0, chunks):
        chunk = i
        if REVERSE:
            chunk = chunks - 1 - i
        tl.store(kept + (sequence * chunks + chunk) * K * V + of_table, s, mask=table)
        t = chunk * L
        mark = tl.load(marks + row * steps + t + lane, mask=t + lane < steps, other=0)
        if REVERSE:
            cut = tl.min(tl.where(mark == 2, lane, L))
            broken = cut < L
            member = (mark != 0) & (lane < cut)
            which = lane[None, :] <= lane[:, None]
        else:
            cut = tl.max(tl.where(mark == 2, lane, -1))
            broken = cut >= 0
            member = (mark != 0) & (lane >= cut)
            which = lane[None, :] > lane[:, None]
        inside = member[:, None] & (n < K)[None, :]
        xs = load(head_of(x, row, t, head, steps, HEADS, K, SHARED), to_keys, inside)
        y_t = head_of(y, row, t, head, steps, HEADS, V, False)
        ys = load(y_t, to_values, member[:, None] & (v < V)[None, :])
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, member, K, PER_KEY)
        decay = tl.exp(sums(which, gates, EXACT, PER_KEY))
        total = tl.exp(tl.sum(gates, axis=0))
        s = tl.where(broken, 0.0, s * total[:, None])
        s += dot(tl.trans(xs * decay), ys, PRECISION)
    tl.store(end + sequence * K * V + of_table, s, mask=table)


@triton.jit
def _cuts(marks, row, t, end, steps, lane):
    """Marks of a chunk, and whether an episode begins inside it."""
    mark = tl.load(marks + row * steps + t + lane, mask=t + lane < end, other=0)
    return mark, tl.max(tl.where((mark == 2) & (lane > 0), 1, 0))


@triton.jit
def _piece(marks, row, t, first, end, steps, lane, apart, K: tl.constexpr):
    """What is taken of a chunk from step t, all of it unless its episodes are kept `apart`: its
    length, its members, where gates are cut, how much of a state enters it."""
    mark = tl.load(marks + row * steps + t + lane, mask=t + lane < end, other=0)
    begins = (mark == 2) & (lane > 0)
    length = tl.min(tl.where(begins & (apart > 0), lane, (end - t).to(tl.int32)))
    begun = tl.max(tl.where((mark == 2) & (lane == 0), 1, 0))
    entering = tl.where((t == first) & (begun == 0), K, 0)
    return length, (mark != 0) & (lane < length), begins & (lane < length), entering


@triton.jit
def _own_sums(gate, cuts, lane, EXACT: tl.constexpr):
    """Gates summed from where a step's episode begins in the chunk, itself included, (L, K); the
    episodes' numbers; and which steps j are of that of i and not after it."""
    episode = tl.cumsum(cuts.to(tl.int32), axis=0)
    before = (lane[None, :] <= lane[:, None]) & (episode[:, None] == episode[None, :])
    return sums(before, tl.where(cuts[:, None], 0.0, gate), EXACT, True), episode, before


@triton.jit
def _since(summed, episode, at_once, gate, earlier, EXACT: tl.constexpr):
    """What of the state before the chunk reaches each step, (L, K)."""
    if at_once:
        decay = tl.where((episode == 0)[:, None], tl.exp(summed), 0.0)
    else:
        decay = tl.exp(sums(earlier, gate, EXACT, True))
    return decay


@triton.jit
def _weights(
    q, k, gate, lane, LEVELS: tl.constexpr, PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The weight of step j in step i, (L, L), 0 for j > i."""
    i, j = lane[:, None], lane[None, :]
    if PER_KEY:
        weights = tl.where(i == j, tl.sum(q * k, axis=1)[:, None], 0.0)
        for level in range(0, LEVELS):
            between, pair = meet(lane, level)
            decay = tl.exp(sums(between, gate, EXACT, True))
            product = dot(q * decay, tl.trans(k * decay), PRECISION)
            weights += tl.where(pair, product, 0.0)
        return weights
    else:
        return dot(q, tl.trans(k), PRECISION) * scalar_decay(gate, lane)


@triton.jit
def _read(
    q, k, gate, cuts, lane, LEVELS: tl.constexpr, PER_KEY: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The weights of the chunk's steps in each other, and what of the state before reaches each."""
    earlier = lane[None, :] <= lane[:, None]
    if PER_KEY:
        summed, episode, before = _own_sums(gate, cuts, lane, EXACT)
        at_once, gate = meet_at_once(summed, k), tl.where(cuts[:, None], CUT, gate)
        since = _since(summed, episode, at_once, gate, earlier, EXACT)
        if at_once:
            weights = dot(q * tl.exp(summed), tl.trans(k * tl.exp(-summed)), PRECISION)
            weights = tl.where(before, weights, 0.0)
        else:
            weights = _weights(q, k, gate, lane, LEVELS, True, PRECISION, EXACT)
    else:
        gate = tl.where(cuts[:, None], CUT, gate)
        weights = _weights(q, k, gate, lane, LEVELS, False, PRECISION, EXACT)
        since = tl.exp(sums(earlier, gate, EXACT, False))
    return weights, since


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    q, k, v, gate, marks, before, o, within,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, PER_KEY: tl.constexpr, SHARED: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """o from the state before each chunk and the steps within it, whose weights it may KEEP."""
    sequence = tl.program_id(0).to(tl.int64)
    chunk, chunks = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    head, row = sequence % HEADS, sequence // HEADS
    n, w = tl.arange(0, KEYS), tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    lane = tl.arange(0, L)
    state = before + (sequence * chunks + chunk) * K * V
    t, end = chunk * L, tl.minimum(chunk * L + L, steps)
    to_keys, to_values = tile(lane, n, HEADS, K, SHARED), tile(lane, w, HEADS, V, False)
    of_values, of_table = (w < V)[None, :], n[:, None] * V + w[None, :]
    apart = 0
    while t < end:
        length, member, cuts, entering = _piece(
            marks, row, t, chunk * L, end, steps, lane, apart, K
        )
        inside = member[:, None] & (n < K)[None, :]
        qs = load(head_of(q, row, t, head, steps, HEADS, K, SHARED), to_keys, inside)
        ks = load(head_of(k, row, t, head, steps, HEADS, K, SHARED), to_keys, inside)
        v_t, of_member = (
            head_of(v, row, t, head, steps, HEADS, V, False),
            member[:, None] & of_values,
        )
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, member, K, PER_KEY)
        if tl.max(cuts.to(tl.int32)) > 0:  # q stays in its row
            apart = count_wild(ks) + wild(v_t, to_values, of_member) + count_wild(gates)
            apart += wild(state, of_table, (n < entering)[:, None] & of_values)
            length = tl.where(apart > 0, 0, length)  # in pieces, from the next round on
        weights, since = _read(qs, ks, gates, cuts, lane, LEVELS, PER_KEY, PRECISION, EXACT)
        if KEEP:
            first = (lane < length) & (tl.program_id(2) == 0)
            of_piece = within + (sequence * chunks + chunk) * L * L + (t - chunk * L) * (L + 1)
            at, both = lane[:, None] * L + lane[None, :], first[:, None] & first[None, :]
            tl.store(of_piece + at, weights, mask=both)
        before_t = load(state, of_table, (n < entering)[:, None] & of_values)
        out = dot(qs * since, before_t, PRECISION)
        out += dot(weights, load(v_t, to_values, of_member), PRECISION)
        out = tl.where(member[:, None], out, 0.0)
        o_t = head_of(o, row, t, head, steps, HEADS, V, False)
        tl.store(o_t + to_values, out, mask=(lane < length)[:, None] & of_values)
        t += length


@triton.jit(do_not_specialize=RUNTIME)
def gradients(
    q, k, v, gate, marks, before, within, after, do, dq, dk, dv, dgate,
    steps,
    HEADS: tl.constexpr, V: tl.constexpr, K: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, L: tl.constexpr,
    LEVELS: tl.constexpr, PER_KEY: tl.constexpr, SHARED: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients at every step from the state before each chunk and its gradient `after` it.

    Where `outputs` kept episodes of a chunk apart, so it is here: what was not tame is not.
    dq and dk are (B, T, H, K) also where q and k are shared by the heads. A gate's gradient is
    the sum over what its decay lies in, gathered by the transposed matrices of zeros and ones.
    """
    sequence = tl.program_id(0).to(tl.int64)
    chunk, chunks = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    head, row = sequence % HEADS, sequence // HEADS
    n, lane = tl.arange(0, KEYS), tl.arange(0, L)
    state = before + (sequence * chunks + chunk) * K * V
    d_state = after + (sequence * chunks + chunk) * K * V
    t, end = chunk * L, tl.minimum(chunk * L + L, steps)
    mark, apart = _cuts(marks, row, t, end, steps, lane)
    if apart > 0:
        inside, at = (mark != 0)[:, None] & (n < K)[None, :], tile(lane, n, HEADS, K, SHARED)
        apart = wild(head_of(q, row, t, head, steps, HEADS, K, SHARED), at, inside)
        apart += wild(head_of(k, row, t, head, steps, HEADS, K, SHARED), at, inside)
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, mark != 0, K, PER_KEY)
        apart += count_wild(gates)
        v_t = head_of(v, row, t, head, steps, HEADS, V, False)
        do_t = head_of(do, row, t, head, steps, HEADS, V, False)
        for first in range(0, V, VALUES):
            w = first + tl.arange(0, VALUES)
            of_values = tile(lane, w, HEADS, V, False)
            some = (mark != 0)[:, None] & (w < V)[None, :]
            apart += wild(v_t, of_values, some) + wild(do_t, of_values, some)
            of_table, there = n[:, None] * V + w[None, :], (n < K)[:, None] & (w < V)[None, :]
            apart += wild(state, of_table, there) + wild(d_state, of_table, there)
    while t < end:
        length, member, cuts, entering = _piece(
            marks, row, t, chunk * L, end, steps, lane, apart, K
        )
        leaving = tl.where(t + length == end, K, 0)
        inside, written = member[:, None] & (n < K)[None, :], (lane < length)[:, None]
        to_keys = tile(lane, n, HEADS, K, SHARED)
        qs = load(head_of(q, row, t, head, steps, HEADS, K, SHARED), to_keys, inside)
        ks = load(head_of(k, row, t, head, steps, HEADS, K, SHARED), to_keys, inside)
        gates = gates_of(gate, row, t, head, steps, HEADS, lane, n, member, K, PER_KEY)
        if PER_KEY:
            summed, episode, before_it = _own_sums(gates, cuts, lane, EXACT)
            at_once = meet_at_once(summed, ks)
        gates = tl.where(cuts[:, None], CUT, gates)
        earlier, later = lane[None, :] <= lane[:, None], lane[None, :] > lane[:, None]
        if PER_KEY:
            of_piece = within + (sequence * chunks + chunk) * L * L + (t - chunk * L) * (L + 1)
            both = (lane < length)[:, None] & (lane < length)[None, :]
            weights = load(of_piece, lane[:, None] * L + lane[None, :], both)
        else:
            weights = _weights(qs, ks, gates, lane, LEVELS, PER_KEY, PRECISION, EXACT)
        until = tl.exp(sums(later, gates, EXACT, PER_KEY))
        d_weights = tl.zeros([L, L], tl.float32)
        d_read = tl.zeros([L, KEYS], tl.float32)
        d_write = tl.zeros([L, KEYS], tl.float32)
        through = tl.zeros([KEYS], tl.float32)
        v_t = head_of(v, row, t, head, steps, HEADS, V, False)
        do_t = head_of(do, row, t, head, steps, HEADS, V, False)
        dv_t = head_of(dv, row, t, head, steps, HEADS, V, False)
        for first in range(0, V, VALUES):
            w = first + tl.arange(0, VALUES)
            of_values = (w < V)[None, :]
            to_values = tile(lane, w, HEADS, V, False)
            vs = load(v_t, to_values, member[:, None] & of_values)
            dos = load(do_t, to_values, member[:, None] & of_values)
            of_table = n[:, None] * V + w[None, :]
            s = load(state, of_table, (n < entering)[:, None] & of_values)
            ds = load(d_state, of_table, (n < leaving)[:, None] & of_values)
            d_weights += dot(dos, tl.trans(vs), PRECISION)
            d_read += dot(dos, tl.trans(s), PRECISION)
            d_write += dot(vs, tl.trans(ds), PRECISION)
            through += tl.sum(s * ds, axis=1)
            d_value = dot(tl.trans(weights), dos, PRECISION) + dot(ks * until, ds, PRECISION)
            d_value = tl.where(member[:, None], d_value, 0.0)
            tl.store(dv_t + to_values, d_value, mask=written & of_values)
        if PER_KEY:
            since = _since(summed, episode, at_once, gates, earlier, EXACT)
        else:
            since = tl.exp(sums(earlier, gates, EXACT, False))
        d_query = d_read * since
        d_key = d_write * until
        of_since, of_until = qs * d_query, ks * d_key
        of_total = through * tl.exp(tl.sum(gates, axis=0))
        to_own = tile(lane, n, HEADS, K, False)
        if PER_KEY:
            d_gate = sums(tl.trans(later), of_until, EXACT, True) + of_total[None, :]
            own = tl.sum(tl.where(lane[:, None] == lane[None, :], d_weights, 0.0), axis=1)[:, None]
            d_query += own * ks
            d_key += own * qs
            if at_once:
                met = tl.where(before_it & (lane[:, None] > lane[None, :]), d_weights, 0.0)
                decay, growth = tl.exp(summed), tl.exp(-summed)
                of_query = dot(met, ks * growth, PRECISION) * decay
                of_key = dot(tl.trans(met), qs * decay, PRECISION) * growth
                d_query += of_query
                d_key += of_key
                of_sums = of_since + qs * of_query - ks * of_key
                d_gate += sums(tl.trans(before_it), of_sums, EXACT, True)
                d_gate = tl.where(cuts[:, None], 0.0, d_gate)
            else:
                d_gate += sums(tl.trans(earlier), of_since, EXACT, True)
                for level in range(0, LEVELS):
                    between, pair = meet(lane, level)
                    decay = tl.exp(sums(between, gates, EXACT, True))
                    met = tl.where(pair, d_weights, 0.0)
                    of_query = dot(met, ks * decay, PRECISION) * decay
                    of_key = dot(tl.trans(met), qs * decay, PRECISION) * decay
                    d_query += of_query
                    d_key += of_key
                    of_decay = qs * of_query + ks * of_key
                    d_gate += sums(tl.trans(between), of_decay, EXACT, True)
            d_gate = tl.where(member[:, None], d_gate, 0.0)
            dgate_t = head_of(dgate, row, t, head, steps, HEADS, K, False)
            tl.store(dgate_t + to_own, d_gate, mask=written & (n < K)[None, :])
        else:
            met = d_weights * scalar_decay(gates, lane)
            d_query += dot(met, ks, PRECISION)
            d_key += dot(tl.trans(met), qs, PRECISION)
            crossing = tl.where(lane[:, None] > lane[None, :], d_weights * weights, 0.0)
            flow = tl.sum(of_since, axis=1) + tl.sum(crossing, axis=1) - tl.sum(crossing, axis=0)
            ending = tl.sum(of_until, axis=1)
            episode = tl.cumsum(cuts.to(tl.int32), axis=0)  # sums of others would cancel, not quite
            onward = tl.trans(earlier) & (episode[:, None] == episode[None, :])
            d_gate = tl.sum(tl.where(onward, flow[None, :], 0.0), axis=1)
            d_gate += tl.sum(tl.where(tl.trans(later), ending[None, :], 0.0), axis=1)
            d_gate = tl.where(member, d_gate + tl.sum(of_total, axis=0), 0.0)
            dgate_t = head_of(dgate, row, t, head, steps, HEADS, 1, False)
            tl.store(dgate_t + lane * HEADS, d_gate, mask=lane < length)
        d_query = tl.where(member[:, None], d_query, 0.0)
        d_key = tl.where(member[:, None], d_key, 0.0)
        dq_t = head_of(dq, row, t, head, steps, HEADS, K, False)
        dk_t = head_of(dk, row, t, head, steps, HEADS, K, False)
        tl.store(dq_t + to_own, d_query, mask=written & (n < K)[None, :])
        tl.store(dk_t + to_own, d_key, mask=written & (n < K)[None, :])
        t += length
