"""delta_rule as the equation, step by step: the oracle, and the step of acting."""

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def step(
    q: Tensor, k: Tensor, w: Tensor, v: Tensor, log_gate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: q, k, w, log_gate (B, H, K), v (B, H, V) -> (o (B, H, V), state (B, H, K, V))."""
    state = torch.exp(log_gate)[..., None] * state
    surprise = v - torch.matmul(k[..., None, :], state).squeeze(-2)
    state = state + w[..., None] * surprise[..., None, :]
    return torch.matmul(q[..., None, :], state).squeeze(-2), state


def scan(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    valid, outputs = packing.valid, []
    inputs = (each.unbind(1) for each in (packing.start, q, k, w, v, log_gate))
    for t, (start_t, q_t, k_t, w_t, v_t, gate_t) in enumerate(zip(*inputs, strict=True)):
        before = torch.where(start_t[:, None, None, None], torch.zeros_like(state), state)
        o_t, after = step(q_t, k_t, w_t, v_t, gate_t, before)
        if valid is None:
            state = after
        else:
            state = torch.where(valid[:, t, None, None, None], after, state)
            o_t = torch.where(valid[:, t, None, None], o_t, torch.zeros_like(o_t))
        outputs.append(o_t)
    return torch.stack(outputs, dim=1), state
