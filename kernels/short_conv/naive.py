"""short_conv as the equation, step by step: the oracle of the fast path, and the step of acting."""

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step: x (B, D), state (B, D, W − 1) -> (y (B, D), new state)."""
    window = torch.cat([state, x[..., None]], dim=-1)  # (B, D, W), oldest first
    y = (weight * window).sum(-1)
    return y if bias is None else y + bias, window[..., 1:]


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `short_conv`."""
    valid = packing.valid
    outputs = []
    for t, (x_t, start_t) in enumerate(zip(x.unbind(1), packing.start.unbind(1), strict=True)):
        before = torch.where(start_t[:, None, None], torch.zeros_like(state), state)
        y_t, after = step(x_t, weight, bias, before)
        if valid is None:
            state = after
        else:
            state = torch.where(valid[:, t, None, None], after, state)
            y_t = torch.where(valid[:, t, None], y_t, torch.zeros_like(y_t))
        outputs.append(y_t)
    return torch.stack(outputs, dim=1), state
