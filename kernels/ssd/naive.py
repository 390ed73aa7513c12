"""ssd as the equation, step by step: the oracle of the fast path, and the step of acting."""

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: x (B, H, P), delta (B, H), B and C (B, N) -> (y (B, H, P), state (B, H, P, N))."""
    decay = torch.exp(delta * A)[..., None, None]
    state = decay * state + (delta[..., None] * x)[..., None] * B[:, None, None]
    return torch.matmul(state, C[:, None, :, None]).squeeze(-1), state


def scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `ssd`."""
    valid, outputs = packing.valid, []
    inputs = (each.unbind(1) for each in (x, delta, B, C, packing.start))
    for t, (x_t, delta_t, B_t, C_t, start_t) in enumerate(zip(*inputs, strict=True)):
        before = torch.where(start_t[:, None, None, None], torch.zeros_like(state), state)
        y_t, after = step(x_t, delta_t, A, B_t, C_t, before)
        if valid is None:
            state = after
        else:
            state = torch.where(valid[:, t, None, None, None], after, state)
            y_t = torch.where(valid[:, t, None, None], y_t, torch.zeros_like(y_t))
        outputs.append(y_t)
    return torch.stack(outputs, dim=1), state
