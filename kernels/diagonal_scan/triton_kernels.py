"""The diagonal scan and its gradient: one Triton program, a row and a tile of poles each.

A program walks along its row by TIME steps, or back along it, with a parallel scan in each tile.
Complex numbers are pairs of float32. Marks (B, T): 0 for a step of no episode, which passes the
state on, 2 for the first of an episode, which drops it, 1 for the others.
"""

import triton
import triton.language as tl


@triton.jit
def _follow(ar, ai, xr, xi, br, bi, yr, yi):
    """x -> a x + u, one step after another; a factor of 0 drops x even if it is NaN."""
    drop = (br == 0.0) & (bi == 0.0)
    cr, ci = br * ar - bi * ai, br * ai + bi * ar
    zr, zi = br * xr - bi * xi, br * xi + bi * xr
    zero = tl.zeros_like(br)
    cr, ci = tl.where(drop, zero, cr), tl.where(drop, zero, ci)
    zr, zi = tl.where(drop, zero, zr), tl.where(drop, zero, zi)
    return cr, ci, zr + yr, zi + yi


@triton.jit
def _factor(mark, a, other):
    """The part `a` of a pole where a step carries the state on, `other` where none is, else 0."""
    return tl.where(mark == 1, a, tl.where(mark == 0, other, 0.0))


@triton.jit(do_not_specialize=["steps"])
def scan(
    u, a, marks, begin, x, end, before, da,
    steps,
    P: tl.constexpr, POLES: tl.constexpr, TIME: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """x_t = factor_t x_{t−1} + u_t from `begin` (B, P, 2) to `end`, every x stored.

    In REVERSE u is the outputs' gradient, x the states', the factor is the next step's, conjugate;
    `da` (B, P, 2) sums what reaches the poles, by the states x of the forward pass in `before`.
    """
    row = tl.program_id(0).to(tl.int64)
    p, k = tl.program_id(1) * POLES + tl.arange(0, POLES), tl.arange(0, TIME)
    here = p < P
    of_row = (row * P + p) * 2
    sr = tl.load(begin + of_row, mask=here, other=0.0)
    si = tl.load(begin + of_row + 1, mask=here, other=0.0)
    ar = tl.load(a + p * 2, mask=here, other=0.0)[None, :]
    ai = tl.load(a + p * 2 + 1, mask=here, other=0.0)[None, :]
    if REVERSE:
        ai = -ai
    sum_r, sum_i = tl.zeros([POLES], tl.float32), tl.zeros([POLES], tl.float32)
    for first in range(0, steps, TIME):
        t = first + k
        inside = t < steps
        if REVERSE:
            t = steps - 1 - t
        at = ((row * steps + t)[:, None] * P + p[None, :]) * 2
        mark = tl.load(marks + row * steps + t, mask=inside, other=0)
        member = (mark != 0)[:, None] & here[None, :]
        ur = tl.load(u + at, mask=member, other=0.0)
        ui = tl.load(u + at + 1, mask=member, other=0.0)
        turn = mark
        if REVERSE:  # past the row's end nothing happens
            turn = tl.load(marks + row * steps + t + 1, mask=inside & (t + 1 < steps), other=0)
        fr, fi = _factor(turn[:, None], ar, 1.0), _factor(turn[:, None], ai, 0.0)
        gone = (k == 0)[:, None] & ((fr == 0.0) & (fi == 0.0))
        entering = (k == 0)[:, None] & (fr == fr)
        er = tl.where(gone, 0.0, fr * sr[None, :] - fi * si[None, :])
        ei = tl.where(gone, 0.0, fr * si[None, :] + fi * sr[None, :])
        ur, ui = tl.where(entering, ur + er, ur), tl.where(entering, ui + ei, ui)
        _, _, xr, xi = tl.associative_scan((fr, fi, ur, ui), 0, _follow)
        stored = inside[:, None] & here[None, :]
        if REVERSE:
            earlier = ((row * steps + t - 1)[:, None] * P + p[None, :]) * 2
            carried = stored & (mark == 1)[:, None]
            hr = tl.load(before + earlier, mask=carried & (t > 0)[:, None], other=0.0)
            hi = tl.load(before + earlier + 1, mask=carried & (t > 0)[:, None], other=0.0)
            sum_r += tl.sum(tl.where(carried, hr * xr + hi * xi, 0.0), axis=0)
            sum_i += tl.sum(tl.where(carried, hr * xi - hi * xr, 0.0), axis=0)
        tl.store(x + at, xr, mask=stored)
        tl.store(x + at + 1, xi, mask=stored)
        sr = tl.sum(tl.where((k == TIME - 1)[:, None], xr, 0.0), axis=0)
        si = tl.sum(tl.where((k == TIME - 1)[:, None], xi, 0.0), axis=0)
    tl.store(end + of_row, sr, mask=here)
    tl.store(end + of_row + 1, si, mask=here)
    if REVERSE:
        tl.store(da + of_row, sum_r, mask=here)
        tl.store(da + of_row + 1, sum_i, mask=here)
