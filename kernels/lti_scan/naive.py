"""lti_scan as the equation, step by step: the oracle of the fast path, and the step of acting."""

import torch
from torch import Tensor

from decision_s4.kernels.lti_scan.system import System
from decision_s4.kernels.packing import Packing


def step(u: Tensor, system: System, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step: u (B, H), state (B, H, n, 2) -> (y (B, H), new state)."""
    x = torch.view_as_complex(state)
    new = system.a * x + system.b * u[..., None]
    if system.w is not None and system.v is not None:
        new = new - system.w * (2 * (system.v * x).real.sum(-1, keepdim=True))
    y = 2 * (system.c * new).real.sum(-1)
    return y, torch.view_as_real(new)


def scan(u: Tensor, system: System, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """See `lti_scan`."""
    valid = packing.valid
    outputs = []
    for t, (u_t, start_t) in enumerate(zip(u.unbind(1), packing.start.unbind(1), strict=True)):
        before = torch.where(start_t[:, None, None, None], torch.zeros_like(state), state)
        y_t, after = step(u_t, system, before)
        if valid is None:
            state = after
        else:
            state = torch.where(valid[:, t, None, None, None], after, state)
            y_t = torch.where(valid[:, t, None], y_t, torch.zeros_like(y_t))
        outputs.append(y_t)
    return torch.stack(outputs, dim=1), state
