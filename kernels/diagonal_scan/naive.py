"""diagonal_scan as the equation, step by step: the oracle of the fast path, and acting's step."""

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def step(u: Tensor, a: Tensor, state: Tensor) -> Tensor:
    """One step: u (B, P), a (P,), state (B, P) -> new state."""
    return torch.addcmul(u, state, a)


def scan(u: Tensor, a: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """See `diagonal_scan`."""
    valid = torch.ones_like(packing.start) if packing.valid is None else packing.valid
    states = []
    masks = packing.start.unbind(1), valid.unbind(1)
    for u_t, start_t, valid_t in zip(u.unbind(1), *masks, strict=True):
        before = torch.where(start_t[:, None], torch.zeros_like(state), state)
        after = step(u_t, a, before)
        state = torch.where(valid_t[:, None], after, state)
        states.append(torch.where(valid_t[:, None], after, torch.zeros_like(after)))
    return torch.stack(states, dim=1), state
