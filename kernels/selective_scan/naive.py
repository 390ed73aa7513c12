"""selective_scan as the equation, step by step: the oracle of the fast paths."""

import torch
from torch import Tensor

from decision_s4.kernels.selective_scan.arguments import Arguments


def step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """h = exp(Δ A) h + Δ B u, y = C · h: u, delta (B, D), B, C (B, N) -> y (B, D), state."""
    decay = torch.exp(delta[..., None] * A)
    state = decay * state + (delta * u)[..., None] * B[:, None]
    return (state * C[:, None]).sum(-1), state


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    u, delta, A, B, C = arguments.core()
    # `unbind`: indexing by t in a loop costs O(T²) in the backward pass.
    each = zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True)
    starts = None if arguments.start is None else arguments.start[..., None, None].unbind(1)
    state, outputs = arguments.state, []
    for t, (u_t, delta_t, B_t, C_t) in enumerate(each):
        if starts is not None:
            state = torch.where(starts[t], torch.zeros_like(state), state)
        y_t, state = step(u_t, delta_t, A, B_t, C_t, state)
        outputs.append(y_t)
    return arguments.finish(torch.stack(outputs, dim=1)), state
