"""Rows of implicit attention in closed form, each from its equation, without a T × T map.

Shapes: B rows, T steps, I steps asked for, H heads or channels, N states, K key width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def each(steps: Tensor, row: Callable[[int], Tensor]) -> Tensor:
    """`row(t)` (B, H, T) of each step: (B, H, I, T), one at a time, as one may be large."""
    return torch.stack([row(step) for step in steps.tolist()], 2)


def visible(packing: Packing, step: int) -> Tensor:
    """(B, T) bool: valid steps of the same episode as `step`, and not later."""
    episode = packing.start.cumsum(1)
    seen = episode == episode[:, step : step + 1]
    if packing.valid is not None:
        seen = seen & packing.valid & packing.valid[:, step : step + 1]
    return seen & (torch.arange(packing.steps, device=seen.device) <= step)


def has_holes(packing: Packing) -> bool:
    """Whether an episode goes on after a step that is not valid: then places are no ages."""
    if packing.valid is None:
        return False
    goes_on = packing.valid & ~packing.start
    return bool((goes_on[:, 1:] & ~packing.valid[:, :-1]).any())


def since(x: Tensor, step: int) -> Tensor:
    """Σ_{s < k <= step} x_k of x (B, T, …): (B, T, …), 0 from `step` on.

    Summed from `step` backwards: differences of one running sum would lose digits.
    """
    past = x[:, 1 : step + 1].flip(1).cumsum(1).flip(1)
    return torch.cat([past, x.new_zeros(len(x), x.shape[1] - step, *x.shape[2:])], 1)


def toeplitz(kernel: Tensor, packing: Packing, step: int) -> Tensor:
    """kernel[t − s]: (T, H), lag by lag -> (B, H, T)."""
    age = (step - torch.arange(packing.steps, device=kernel.device)).clamp(min=0)
    return kernel[age].T.where(visible(packing, step)[:, None], 0)


def selective(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, packing: Packing, step: int
) -> Tensor:
    """Hidden attention of S6 (Ali, Zimerman, Wolf, arXiv 2403.01590, section 4):

        α[t, s] = Σ_n C_t[n] exp(A[d, n] Σ_{s < k <= t} Δ_k[d]) Δ_s[d] B_s[n]

    Args:
        delta: (B, T, D).
        A: (D, N).
        B: (B, T, N), as C.

    Returns:
        (B, D, T).
    """
    decay = torch.exp(since(delta, step)[..., None] * A)  # (B, T, D, N)
    read = B * C[:, step : step + 1]
    row = torch.einsum("btdn,btn,btd->bdt", decay, read, delta)
    return row.where(visible(packing, step)[:, None], 0)


def gated(q: Tensor, k: Tensor, log_gate: Tensor, packing: Packing, step: int) -> Tensor:
    """Of gated linear attention: α[t, s] = Σ_i q_t[i] exp(Σ_{s < j <= t} g_j[i]) k_s[i].

    Args:
        q: (B, T, H, K), as k.
        log_gate: (B, T, H, K or 1).

    Returns:
        (B, H, T).
    """
    weight = torch.exp(since(log_gate, step)) * k * q[:, step : step + 1]
    return weight.sum(-1).transpose(1, 2).where(visible(packing, step)[:, None], 0)


def erasing(
    q: Tensor, k: Tensor, w: Tensor, erased: Tensor, by: Tensor, packing: Packing, step: int
) -> Tensor:
    """Of S_t = (diag(w_t) − by_t erased_tᵀ) S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t, all (B, T, H, K):

        α[t, s] = q_tᵀ A_t … A_{s+1} k_s,   A = diag(w) − by erasedᵀ

    Returns:
        (B, H, T).
    """
    each = [x.unbind(1) for x in (w, erased, by)]
    found = [q[:, step]]  # of step, step − 1, …
    for w_s, erased_s, by_s in list(zip(*each, strict=True))[step:0:-1]:
        p = found[-1]
        found.append(w_s * p - (by_s * p).sum(-1, keepdim=True) * erased_s)
    row = (torch.stack(found[::-1], 1) * k[:, : step + 1]).sum(-1).transpose(1, 2)
    row = torch.nn.functional.pad(row, (0, packing.steps - 1 - step))
    return row.where(visible(packing, step)[:, None], 0)


def windowed(weights: Tensor, packing: Packing, length: int, step: int) -> Tensor:
    """Of attention in chunks of `length` = L: weights (M, H, L, P + L) -> (B, H, T).

    Place j of a chunk's row l is the valid step P + l − j before it.
    """
    if not len(weights):  # no step is valid
        return weights.new_zeros(packing.rows, weights.shape[1], packing.steps)
    rows = torch.arange(packing.rows, device=weights.device)
    valid = torch.ones_like(packing.start) if packing.valid is None else packing.valid
    rank = valid.cumsum(1)
    place = packing.chunks(length).target[rows * packing.steps + step]
    place = place.clamp(max=len(weights) * length - 1)  # none, of a step that is not valid
    own = weights[place // length, :, place % length]  # (B, H, P + L)
    past = weights.shape[-1] - length
    age = rank[:, step, None] - rank
    at = past + (place % length)[:, None] - age  # (B, T)
    known = visible(packing, step) & (at >= 0)
    index = at.clamp(0, own.shape[-1] - 1)[:, None].expand(-1, own.shape[1], -1)
    return own.gather(2, index).where(known[:, None], 0)


def through_conv(rows: Tensor, weight: Tensor, packing: Packing) -> Tensor:
    """rows · Conv: (B, H, I, T) over a convolution's outputs, as rows over its inputs.

    weight (H, W), the tap of the newest input last; taps do not cross a start.
    """
    episode, found = packing.start.cumsum(1), rows * weight[:, -1, None, None]
    for k in range(1, min(weight.shape[1], packing.steps)):
        same = (episode[:, k:] == episode[:, :-k])[:, None, None]
        moved = rows[..., k:].where(same, 0) * weight[:, -1 - k, None, None]
        found = found + torch.nn.functional.pad(moved, (0, k))
    return found


def add_skip(rows: Tensor, skip: Tensor, packing: Packing, steps: Tensor) -> Tensor:
    """rows (B, H, I, T) with skip (H,) added where a valid step sees itself."""
    here = steps[:, None] == torch.arange(packing.steps, device=rows.device)
    here = here if packing.valid is None else here & packing.valid[:, None, None]
    return rows + skip[:, None, None] * here


def scale(rows: Tensor, outputs: Tensor, steps: Tensor) -> Tensor:
    """diag(outputs) · rows, outputs (B, T, H)."""
    return rows * outputs[:, steps].transpose(1, 2)[..., None]


def recurrent(
    transition: Callable[[int], Tensor],
    inputs: Callable[[int], Tensor],
    out: Tensor,
    packing: Packing,
    step: int,
) -> Tensor:
    """Of h_t = out_t ∘ x_t, x_t = J_t x_{t−1} + G_t v_t: out_t J_t … J_{s+1} G_s.

    Args:
        transition: J_t (B, H, H) by t.
        inputs: G_t (B, H, V) by t.
        out: (B, T, H).

    Returns:
        (B, H · V, T), pairs of an output and an input channel.
    """
    product, found = torch.diag_embed(out[:, step]), []
    for s in range(step, -1, -1):
        found.append((product @ inputs(s)).flatten(1))
        product = product @ transition(s)
    row = torch.stack(found[::-1], 2)
    row = torch.nn.functional.pad(row, (0, packing.steps - 1 - step))
    return row.where(visible(packing, step)[:, None], 0)
