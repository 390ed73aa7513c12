"""short_conv by shifts: tap k is the row moved by k steps, zero where that crosses a start.

Masks select, they never multiply: what lies before a start may be NaN.
"""

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `short_conv`."""
    if packing.valid is None:
        taps = _taps(x, packing.start, state)
        return _weigh(taps, weight, bias), _latest(taps, state)
    valid, count = packing.valid[..., None], packing.valid.sum(1)
    if packing.ordered:
        taps = _taps(x.where(valid, 0), packing.start, state)
        return _weigh(taps, weight, bias).where(valid, 0), _latest(taps, state, count)
    order = (~packing.valid).sort(dim=1, stable=True).indices  # valid steps first: no holes between
    dense = _rearrange(x.where(valid, 0), order)
    taps = _taps(dense, packing.start.gather(1, order), state)
    y = _rearrange(_weigh(taps, weight, bias), order.argsort(1))
    return y.where(valid, 0), _latest(taps, state, count)


def _rearrange(x: Tensor, order: Tensor) -> Tensor:
    """Steps of x (B, T, D) in another order (B, T)."""
    return x.gather(1, order[..., None].expand_as(x))


def _taps(x: Tensor, start: Tensor, state: Tensor) -> list[Tensor]:
    """x_{t−k} (B, T, D) for k = 0 … W − 1."""
    steps, reach = x.shape[1], state.shape[2]
    past = torch.cat([state.transpose(1, 2), x], dim=1)  # (B, W − 1 + T, D)
    taps, crossed = [x], torch.zeros_like(start)
    for k in range(1, reach + 1):
        crossed = crossed | _later(start, k - 1)
        tap = past[:, reach - k : reach - k + steps]
        taps.append(tap.masked_fill(crossed[..., None], 0))
    return taps


def _later(start: Tensor, k: int) -> Tensor:
    """`start` (B, T) moved k steps later; False comes in."""
    return torch.cat(
        [torch.zeros_like(start[:, :k]), start[:, : max(start.shape[1] - k, 0)]], dim=1
    )


def _weigh(taps: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    y = taps[0] * weight[:, -1]
    for k, tap in enumerate(taps[1:], start=1):
        y = torch.addcmul(y, tap, weight[:, -1 - k])
    return y if bias is None else y + bias


def _latest(taps: list[Tensor], state: Tensor, count: Tensor | None = None) -> Tensor:
    """The taps (B, D, W − 1) that the step after the last one sees, `count` (B,) steps in all."""
    recent = taps[-2::-1]  # oldest first
    if not recent:
        return state
    if count is None:
        return torch.stack([tap[:, -1] for tap in recent], dim=2)
    last = (count - 1).clamp(min=0)
    rows = torch.arange(len(last), device=last.device)
    found = torch.stack([tap[rows, last] for tap in recent], dim=2)
    return torch.where(count[:, None, None] > 0, found, state)
