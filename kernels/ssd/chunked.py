"""ssd by chunks: attention with decay inside a chunk, the state passed on between chunks.

Shapes: H heads of P channels, N state size, M chunks of L steps. The decay from step j to step i
is exp(s_i − s_j), s the sum of Δ A within the chunk: never above 1. Sums are float64, so that
their differences stay exact after strong decay (arXiv 2405.21060, section 6 and listing 1).
"""

from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.chunks import chunk_for, from_chunks, pass_on, to_chunks
from decision_s4.kernels.packing import Packing

CHUNK = 32  # of 16 … 128 the fastest at 4 or 8 heads of 32 channels, N = 32 or 64, on a CPU


def scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    packing: Packing,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See `ssd`."""
    layout = packing.chunks(chunk_for(x.shape[1], chunk))
    if not layout.counts:
        return torch.zeros_like(x), state
    x, delta, B, C = (to_chunks(each, layout) for each in (x, delta, B, C))
    x = x * delta[..., None]  # (M, L, H, P)
    s = (delta.double() * A).cumsum(1)  # (M, L, H)

    since, left = (torch.exp(each.to(x.dtype))[..., None] for each in (s, s[:, -1:] - s))
    gain = torch.matmul((x * left).flatten(2).transpose(1, 2), B)  # (M, H·P, N)
    gain = gain.view(-1, *state.shape[1:])  # (M, H, P, N)
    before, final = pass_on(gain, since[:, -1, :, None], state, layout)

    carried = torch.matmul(C, before.flatten(1, 2).transpose(1, 2)).view_as(x) * since
    weights = torch.matmul(C, B.transpose(1, 2))[:, None] * _Decay.apply(s.transpose(1, 2), x.dtype)
    within = torch.matmul(weights, x.transpose(1, 2)).transpose(1, 2)  # weights (M, H, L, L)
    return from_chunks(carried + within, layout, len(packing.start)), final


class _Decay(torch.autograd.Function):
    """s (…, L) -> exp(s_i − s_j) (…, L, L) for j ≤ i, else 0; masked before exp overflows.

    With the gradient by hand, ∂s_i = Σ_j G_ij − Σ_j G_ji: a third of what autograd takes.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, dtype: torch.dtype) -> Tensor:
        length = s.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=s.device).triu(1)
        exponent = (s[..., :, None] - s[..., None, :]).to(dtype)
        decay = exponent.masked_fill_(future, -torch.inf).exp_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (decay,) = ctx.saved_tensors
        gradient = gradient * decay
        return (gradient.sum(-1) - gradient.sum(-2)).double(), None
