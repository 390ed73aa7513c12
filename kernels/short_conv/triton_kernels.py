"""short_conv and its gradient: a Triton program has a tile of steps and of channels of one row.

Steps are numbered as a row's valid ones, in time order: `order` (B, T) says where each lies,
`count` (B,) how many there are, `segment` (B, T) how many episodes have begun up to a step. What
came in is numbered −1, −2, … and belongs to segment 0. Shapes: W taps, D channels.
"""

import triton
import triton.language as tl


@triton.jit
def _steps(order, segment, row, steps, at, inside, ORDER: tl.constexpr):
    """Where the steps numbered `at` of a row lie in (B·T), and their segments; 0 before them."""
    place = row * steps + at
    if ORDER:
        place = row * steps + tl.load(order + place, mask=inside, other=0)
    return place, tl.load(segment + place, mask=inside, other=0)


@triton.jit
def _tile(
    x, state, order, segment, row, steps, at, mine, wanted, d, D,
    W: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """(TIME, CHANNELS): the steps numbered `at` of segment `mine`, or of what came in; else 0."""
    known = wanted & (at >= 0)
    place, theirs = _steps(order, segment, row, steps, at, known, ORDER)
    met, here = theirs == mine, (d < D)[None, :]
    inner = (known & met)[:, None] & here
    value = tl.load(x + place[:, None] * D + d[None, :], mask=inner, other=0.0).to(tl.float32)
    past = (wanted & (at < 0) & (mine == 0))[:, None] & here
    begin = state + (row * D + d[None, :]) * (W - 1) + (W - 1 + at)[:, None]
    return value + tl.load(begin, mask=past, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["steps", "D"])
def forward(
    x, weight, bias, state, order, segment, count, y, final, steps, D,
    W: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr,
    ORDER: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """y (B, T, D), zero at steps that are not valid if these come last; final (B, D, W − 1)."""
    row, tile = tl.program_id(1).to(tl.int64), tl.program_id(2)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    at = tile * TIME + tl.arange(0, TIME)
    valid = tl.load(count + row)
    inside = at < valid
    place, mine = _steps(order, segment, row, steps, at, inside, ORDER)
    here = d < D
    total = tl.zeros([TIME, CHANNELS], tl.float32)
    for k in tl.static_range(W):
        tap = _tile(x, state, order, segment, row, steps, at - k, mine, inside, d, D, W, ORDER)
        total += tap * tl.load(weight + d * W + (W - 1 - k), mask=here, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + d, mask=here, other=0.0).to(tl.float32)[None, :]
    stored = inside
    if not ORDER:
        stored = at < steps
    total = tl.where(inside[:, None], total, 0.0)
    out = y + place[:, None] * D + d[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=stored[:, None] & here[None, :])
    if tile == 0:
        once = tl.arange(0, TIME) < 1
        end = tl.zeros([TIME], tl.int32) + valid
        _last, last = _steps(order, segment, row, steps, end - 1, once & (end > 0), ORDER)
        for j in tl.static_range(W - 1):
            recent = _tile(
                x, state, order, segment, row, steps, end - (W - 1 - j), last, once, d, D, W, ORDER
            )
            value = tl.sum(recent, axis=0).to(final.dtype.element_ty)
            tl.store(final + (row * D + d) * (W - 1) + j, value, mask=here)


@triton.jit(do_not_specialize=["steps", "D"])
def backward(
    x, weight, state, dy, dfinal, order, segment, count, dx, dstate, parts, steps, D,
    W: tl.constexpr, TIME: tl.constexpr, CHANNELS: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """dx (B, T, D), dstate (B, D, W − 1) and `parts` (B · tiles, W + 1, D): what each program adds
    to the gradients of the taps, the latest first, and of the bias.
    """
    row, tile, tiles = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    i = tl.arange(0, TIME)
    at = tile * TIME + i
    valid = tl.load(count + row)
    inside, here = at < valid, d < D
    place, mine = _steps(order, segment, row, steps, at, inside, ORDER)
    both = inside[:, None] & here[None, :]
    own = tl.load(dy + place[:, None] * D + d[None, :], mask=both, other=0.0).to(tl.float32)
    end = tl.zeros([TIME], tl.int32) + valid
    _, last = _steps(order, segment, row, steps, end - 1, end > 0, ORDER)
    total = tl.zeros([TIME, CHANNELS], tl.float32)
    parts += (row * tiles + tile) * (W + 1) * D
    for k in tl.static_range(W):
        tap = _tile(x, state, order, segment, row, steps, at - k, mine, inside, d, D, W, ORDER)
        tl.store(parts + k * D + d, tl.sum(tap * own, axis=0), mask=here)
        later = at + k
        reached = inside & (later < valid)
        there, theirs = _steps(order, segment, row, steps, later, reached, ORDER)
        met = (reached & (theirs == mine))[:, None] & here[None, :]
        outer = tl.load(dy + there[:, None] * D + d[None, :], mask=met, other=0.0).to(tl.float32)
        total += outer * tl.load(weight + d * W + (W - 1 - k), mask=here, other=0.0)[None, :]
    tl.store(parts + W * D + d, tl.sum(own, axis=0), mask=here)
    slot = W - 1 - (valid - at)  # where the last steps end up
    kept = (inside & (slot >= 0) & (mine == last))[:, None] & here[None, :]
    outer = tl.load(dfinal + (row * D + d[None, :]) * (W - 1) + slot[:, None], mask=kept, other=0.0)
    total += outer.to(tl.float32)
    stored = inside
    if not ORDER:
        stored = at < steps
    out = dx + place[:, None] * D + d[None, :]
    tl.store(out, total.to(dx.dtype.element_ty), mask=stored[:, None] & here[None, :])
    if tile == 0:
        first, begun_in = _steps(order, segment, row, steps, i, i < valid, ORDER)
        read = ((i < valid) & (begun_in == 0))[:, None] & here[None, :]
        begun = tl.load(dy + first[:, None] * D + d[None, :], mask=read, other=0.0)
        for j in tl.static_range(W - 1):
            by = i + (W - 1 - j)  # the tap by which step i reads what is number j
            reads = (by < W)[:, None] & here[None, :]
            taps = tl.load(weight + d[None, :] * W + (W - 1 - by)[:, None], mask=reads, other=0.0)
            carried = tl.sum(taps.to(tl.float32) * begun.to(tl.float32), axis=0)
            stays = here & (valid <= j) & (tl.max(last, axis=0) == 0)
            left = tl.load(dfinal + (row * D + d) * (W - 1) + (j - valid), mask=stays, other=0.0)
            carried += left.to(tl.float32)
            to = dstate + (row * D + d) * (W - 1) + j
            tl.store(to, carried.to(dstate.dtype.element_ty), mask=here)
