"""almost_linear and its gradient: a Triton program walks episodes one by one (triton_walk.py).

The matrix stays in registers; what a step reads is asked for two steps ahead. Shapes: B rows,
T steps, M units (M_ with padding).
"""

import triton
import triton.language as tl

from decision_s4.kernels.triton_walk import (
    matrix,
    place_of,
    put,
    segment_of,
    span,
    turned,
    vector,
)


@triton.jit(do_not_specialize=["steps", "linear"])
def forward(
    u, decay, weight, state, order, segment, count, z, final, kept, steps, linear,
    M: tl.constexpr, M_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """z (B, T, M) at valid steps, final (B, M); kept is z before (B, T, M)."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, valid = tl.arange(0, M_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    x = vector(state + row * M, i, first == 0, M)
    if first < end:
        w, a = matrix(weight, 0, i, i, M), vector(decay, i, True, M)
        met = tl.where(first == 0, 0, -1)
        p0, more = place_of(order, row, steps, first, True, ORDER), first + 1 < end
        p1 = place_of(order, row, steps, first + 1, more, ORDER)
        p2 = place_of(order, row, steps, first + 2, first + 2 < end, ORDER)
        u0, u1 = vector(u + p0 * M, i, True, M), vector(u + p1 * M, i, more, M)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        for at in range(first, end):
            more = at + 2 < end
            u2, met2 = vector(u + p2 * M, i, more, M), segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at + 3, at + 3 < end, ORDER)

            x = tl.where(met0 == met, x, 0.0)
            if KEEP:
                put(kept + p0 * M, i, x, M)
            opened = tl.where((i >= linear) & (x <= 0), 0.0, x)
            x = u0 + a * x + tl.sum(w * opened[None, :], axis=1)
            put(z + p0 * M, i, x, M)

            met, met0, met1 = met0, met1, met2
            p0, p1, p2, u0, u1 = p1, p2, p3, u1, u2
    if ((first < end) & (end == valid)) | ((tile == 0) & (valid == 0)):
        put(final + row * M, i, x, M)


@triton.jit(do_not_specialize=["steps", "linear"])
def backward(
    decay, weight, kept, dz, dfinal, order, segment, count, du, dstate, steps, linear,
    M: tl.constexpr, M_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Gradients of u (B, T, M) at valid steps, and of the state (B, M)."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, valid = tl.arange(0, M_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    dx = vector(dfinal + row * M, i, end == valid, M)
    met = 0
    if first < end:
        w, a = turned(weight, 0, i, i, M), vector(decay, i, True, M)
        p0, more = place_of(order, row, steps, end - 1, True, ORDER), end - 2 >= first
        p1 = place_of(order, row, steps, end - 2, more, ORDER)
        p2 = place_of(order, row, steps, end - 3, end - 3 >= first, ORDER)
        x0, x1 = vector(kept + p0 * M, i, True, M), vector(kept + p1 * M, i, more, M)
        dz0, dz1 = vector(dz + p0 * M, i, True, M), vector(dz + p1 * M, i, more, M)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        met = segment_of(segment, p0, True)  # a second name of met0 would not follow the loop
        for back in range(0, end - first):
            at = end - 1 - back
            more = at - 2 >= first
            x2, dz2 = vector(kept + p2 * M, i, more, M), vector(dz + p2 * M, i, more, M)
            met2 = segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at - 3, at - 3 >= first, ORDER)

            dx = tl.where(met0 == met, dx, 0.0) + dz0
            put(du + p0 * M, i, dx, M)
            through = tl.sum(w * dx[None, :], axis=1)
            dx = a * dx + tl.where((i >= linear) & (x0 <= 0), 0.0, through)

            met, met0, met1 = met0, met1, met2
            p0, p1, p2, x0, x1, dz0, dz1 = p1, p2, p3, x1, x2, dz1, dz2
    if tile == 0:
        put(dstate + row * M, i, tl.where(met == 0, dx, 0.0), M)
