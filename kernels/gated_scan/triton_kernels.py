"""GRU and LSTM and their gradients: a Triton program walks episodes one by one (triton_walk.py).

The recurrent matrix stays in registers; a step is one product with it, of a vector. What a step
reads is asked for two steps ahead. Gates' inputs, W x + b, and sums over steps are computed around
it. Shapes: B rows, T steps, H width (H_ with padding), G gates; `kept` (planes, B, T, H).
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


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    fallen = tl.exp(-2 * tl.abs(x))
    size = (1 - fallen) / (1 + fallen)
    return tl.where(x < 0, -size, size)


@triton.jit
def _three(pointer, stride, i, inside, H: tl.constexpr):
    one = vector(pointer, i, inside, H)
    two = vector(pointer + stride, i, inside, H)
    return one, two, vector(pointer + 2 * stride, i, inside, H)


@triton.jit
def _four(pointer, stride, i, inside, H: tl.constexpr):
    one, two, three = _three(pointer, stride, i, inside, H)
    return one, two, three, vector(pointer + 3 * stride, i, inside, H)


@triton.jit(do_not_specialize=["steps", "plane"])
def gru(
    gates, weight, bias, state, order, segment, count, y, final, kept, plane, steps,
    H: tl.constexpr, H_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y (B, T, H) at valid steps and final (B, 1, H), of gates (B, T, 3H).

    Kept: h before, r, z, n, and U h + b' of n.
    """
    row, tile, plane = tl.program_id(0).to(tl.int64), tl.program_id(1), plane.to(tl.int64)
    i, valid = tl.arange(0, H_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    if (tile == 0) & (valid == 0):
        put(final + row * H, i, vector(state + row * H, i, True, H), H)
    if first < end:
        u_r, u_z = matrix(weight, 0, i, i, H), matrix(weight, 1, i, i, H)
        u_n = matrix(weight, 2, i, i, H)
        b_r, b_z, b_n = _three(bias, H, i, True, H)
        h, met = vector(state + row * H, i, first == 0, H), tl.where(first == 0, 0, -1)
        p0, more = place_of(order, row, steps, first, True, ORDER), first + 1 < end
        p1 = place_of(order, row, steps, first + 1, more, ORDER)
        p2 = place_of(order, row, steps, first + 2, first + 2 < end, ORDER)
        r0, z0, n0 = _three(gates + p0 * 3 * H, H, i, True, H)
        r1, z1, n1 = _three(gates + p1 * 3 * H, H, i, more, H)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        for at in range(first, end):
            more = at + 2 < end
            r2, z2, n2 = _three(gates + p2 * 3 * H, H, i, more, H)
            met2 = segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at + 3, at + 3 < end, ORDER)

            h = tl.where(met0 == met, h, 0.0)
            r = _sigmoid(r0 + b_r + tl.sum(u_r * h[None, :], axis=1))
            z = _sigmoid(z0 + b_z + tl.sum(u_z * h[None, :], axis=1))
            inner = b_n + tl.sum(u_n * h[None, :], axis=1)
            n = _tanh(n0 + r * inner)
            if KEEP:
                here = kept + p0 * H
                put(here, i, h, H)
                put(here + plane, i, r, H)
                put(here + 2 * plane, i, z, H)
                put(here + 3 * plane, i, n, H)
                put(here + 4 * plane, i, inner, H)
            h = n + z * (h - n)
            put(y + p0 * H, i, h, H)

            met, met0, met1 = met0, met1, met2
            p0, p1, p2 = p1, p2, p3
            r0, z0, n0, r1, z1, n1 = r1, z1, n1, r2, z2, n2
        if end == valid:
            put(final + row * H, i, h, H)


@triton.jit(do_not_specialize=["steps", "plane"])
def gru_backward(
    weight, kept, dy, dfinal, order, segment, count, d_gates, d_product, d_state, plane, steps,
    H: tl.constexpr, H_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Gradients of gates (B, T, 3H) and of the product U h + b' (B, T, 3H) at valid steps, and of
    the state (B, 1, H)."""
    row, tile, plane = tl.program_id(0).to(tl.int64), tl.program_id(1), plane.to(tl.int64)
    i, valid = tl.arange(0, H_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    dh = vector(dfinal + row * H, i, end == valid, H)
    met0 = 0
    if first < end:
        u_r, u_z = turned(weight, 0, i, i, H), turned(weight, 1, i, i, H)
        u_n = turned(weight, 2, i, i, H)
        p0, more = place_of(order, row, steps, end - 1, True, ORDER), end - 2 >= first
        p1 = place_of(order, row, steps, end - 2, more, ORDER)
        p2 = place_of(order, row, steps, end - 3, end - 3 >= first, ORDER)
        h0, r0, z0, n0 = _four(kept + p0 * H, plane, i, True, H)
        h1, r1, z1, n1 = _four(kept + p1 * H, plane, i, more, H)
        inner0, inner1 = (
            vector(kept + 4 * plane + p0 * H, i, True, H),
            vector(kept + 4 * plane + p1 * H, i, more, H),
        )
        dy0, dy1 = vector(dy + p0 * H, i, True, H), vector(dy + p1 * H, i, more, H)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        met = segment_of(segment, p0, True)  # a second name of met0 would not follow the loop
        for back in range(0, end - first):
            at = end - 1 - back
            more = at - 2 >= first
            h2, r2, z2, n2 = _four(kept + p2 * H, plane, i, more, H)
            inner2 = vector(kept + 4 * plane + p2 * H, i, more, H)
            dy2, met2 = vector(dy + p2 * H, i, more, H), segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at - 3, at - 3 >= first, ORDER)

            dh = tl.where(met0 == met, dh, 0.0) + dy0
            d_n = dh * (1 - z0) * (1 - n0 * n0)
            d_r = d_n * inner0 * r0 * (1 - r0)
            d_z = dh * (h0 - n0) * z0 * (1 - z0)
            d_inner = d_n * r0
            to_gates, to_product = d_gates + p0 * 3 * H, d_product + p0 * 3 * H
            put(to_gates, i, d_r, H)
            put(to_gates + H, i, d_z, H)
            put(to_gates + 2 * H, i, d_n, H)
            put(to_product, i, d_r, H)
            put(to_product + H, i, d_z, H)
            put(to_product + 2 * H, i, d_inner, H)
            through = u_r * d_r[None, :] + u_z * d_z[None, :] + u_n * d_inner[None, :]
            dh = dh * z0 + tl.sum(through, axis=1)

            met, met0, met1 = met0, met1, met2
            p0, p1, p2 = p1, p2, p3
            h0, r0, z0, n0, inner0, dy0 = h1, r1, z1, n1, inner1, dy1
            h1, r1, z1, n1, inner1, dy1 = h2, r2, z2, n2, inner2, dy2
        met0 = met
    if tile == 0:
        put(d_state + row * H, i, tl.where(met0 == 0, dh, 0.0), H)


@triton.jit(do_not_specialize=["steps", "plane"])
def lstm(
    gates, weight, bias, state, order, segment, count, y, final, kept, plane, steps,
    H: tl.constexpr, H_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """y (B, T, H) at valid steps and final (B, 2, H), of gates (B, T, 4H).

    Kept: h and c before, i, f, g, o.
    """
    row, tile, plane = tl.program_id(0).to(tl.int64), tl.program_id(1), plane.to(tl.int64)
    i, valid = tl.arange(0, H_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    carried = state + row * 2 * H
    h, c = vector(carried, i, first == 0, H), vector(carried + H, i, first == 0, H)
    if first < end:
        u_i, u_f = matrix(weight, 0, i, i, H), matrix(weight, 1, i, i, H)
        u_g, u_o = matrix(weight, 2, i, i, H), matrix(weight, 3, i, i, H)
        b_i, b_f, b_g, b_o = _four(bias, H, i, True, H)
        met = tl.where(first == 0, 0, -1)
        p0, more = place_of(order, row, steps, first, True, ORDER), first + 1 < end
        p1 = place_of(order, row, steps, first + 1, more, ORDER)
        p2 = place_of(order, row, steps, first + 2, first + 2 < end, ORDER)
        i0, f0, g0, o0 = _four(gates + p0 * 4 * H, H, i, True, H)
        i1, f1, g1, o1 = _four(gates + p1 * 4 * H, H, i, more, H)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        for at in range(first, end):
            more = at + 2 < end
            i2, f2, g2, o2 = _four(gates + p2 * 4 * H, H, i, more, H)
            met2 = segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at + 3, at + 3 < end, ORDER)

            goes_on = met0 == met
            h, c = tl.where(goes_on, h, 0.0), tl.where(goes_on, c, 0.0)
            enter = _sigmoid(i0 + b_i + tl.sum(u_i * h[None, :], axis=1))
            stay = _sigmoid(f0 + b_f + tl.sum(u_f * h[None, :], axis=1))
            g = _tanh(g0 + b_g + tl.sum(u_g * h[None, :], axis=1))
            leave = _sigmoid(o0 + b_o + tl.sum(u_o * h[None, :], axis=1))
            if KEEP:
                here = kept + p0 * H
                put(here, i, h, H)
                put(here + plane, i, c, H)
                put(here + 2 * plane, i, enter, H)
                put(here + 3 * plane, i, stay, H)
                put(here + 4 * plane, i, g, H)
                put(here + 5 * plane, i, leave, H)
            c = stay * c + enter * g
            h = leave * _tanh(c)
            put(y + p0 * H, i, h, H)

            met, met0, met1 = met0, met1, met2
            p0, p1, p2 = p1, p2, p3
            i0, f0, g0, o0, i1, f1, g1, o1 = i1, f1, g1, o1, i2, f2, g2, o2
    if ((first < end) & (end == valid)) | ((tile == 0) & (valid == 0)):
        put(final + row * 2 * H, i, h, H)
        put(final + row * 2 * H + H, i, c, H)


@triton.jit(do_not_specialize=["steps", "plane"])
def lstm_backward(
    weight, kept, dy, dfinal, order, segment, count, d_gates, d_state, plane, steps,
    H: tl.constexpr, H_: tl.constexpr, TILE: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Gradients of gates (B, T, 4H) at valid steps, and of the state (B, 2, H)."""
    row, tile, plane = tl.program_id(0).to(tl.int64), tl.program_id(1), plane.to(tl.int64)
    i, valid = tl.arange(0, H_), tl.load(count + row)
    first, end = span(order, segment, row, steps, valid, tile, TILE, ORDER)
    of_row = dfinal + row * 2 * H
    dh, dc = vector(of_row, i, end == valid, H), vector(of_row + H, i, end == valid, H)
    met0 = 0
    if first < end:
        u_i, u_f = turned(weight, 0, i, i, H), turned(weight, 1, i, i, H)
        u_g, u_o = turned(weight, 2, i, i, H), turned(weight, 3, i, i, H)
        p0, more = place_of(order, row, steps, end - 1, True, ORDER), end - 2 >= first
        p1 = place_of(order, row, steps, end - 2, more, ORDER)
        p2 = place_of(order, row, steps, end - 3, end - 3 >= first, ORDER)
        i0, f0, g0, o0 = _four(kept + 2 * plane + p0 * H, plane, i, True, H)
        i1, f1, g1, o1 = _four(kept + 2 * plane + p1 * H, plane, i, more, H)
        c0 = vector(kept + plane + p0 * H, i, True, H)
        c1 = vector(kept + plane + p1 * H, i, more, H)
        dy0, dy1 = vector(dy + p0 * H, i, True, H), vector(dy + p1 * H, i, more, H)
        met0, met1 = segment_of(segment, p0, True), segment_of(segment, p1, more)
        met = segment_of(segment, p0, True)  # a second name of met0 would not follow the loop
        for back in range(0, end - first):
            at = end - 1 - back
            more = at - 2 >= first
            i2, f2, g2, o2 = _four(kept + 2 * plane + p2 * H, plane, i, more, H)
            c2, dy2 = vector(kept + plane + p2 * H, i, more, H), vector(dy + p2 * H, i, more, H)
            met2 = segment_of(segment, p2, more)
            p3 = place_of(order, row, steps, at - 3, at - 3 >= first, ORDER)

            goes_on, bent = met0 == met, _tanh(f0 * c0 + i0 * g0)
            dh = tl.where(goes_on, dh, 0.0) + dy0
            dc = tl.where(goes_on, dc, 0.0) + dh * o0 * (1 - bent * bent)
            d_i, d_f = dc * g0 * i0 * (1 - i0), dc * c0 * f0 * (1 - f0)
            d_g, d_o = dc * i0 * (1 - g0 * g0), dh * bent * o0 * (1 - o0)
            here = d_gates + p0 * 4 * H
            put(here, i, d_i, H)
            put(here + H, i, d_f, H)
            put(here + 2 * H, i, d_g, H)
            put(here + 3 * H, i, d_o, H)
            through = u_i * d_i[None, :] + u_f * d_f[None, :]
            through += u_g * d_g[None, :] + u_o * d_o[None, :]
            dh, dc = tl.sum(through, axis=1), dc * f0

            met, met0, met1 = met0, met1, met2
            p0, p1, p2 = p1, p2, p3
            i0, f0, g0, o0, c0, dy0 = i1, f1, g1, o1, c1, dy1
            i1, f1, g1, o1, c1, dy1 = i2, f2, g2, o2, c2, dy2
        met0 = met
    if tile == 0:
        put(d_state + row * 2 * H, i, tl.where(met0 == 0, dh, 0.0), H)
        put(d_state + row * 2 * H + H, i, tl.where(met0 == 0, dc, 0.0), H)
