"""gated_linear by chunks: attention with decay inside a chunk, the state passed on between chunks.

Shapes: H heads, K key and V value width, M chunks of L steps. The weight of step j in step i is
q_i · (k_j ⊙ decay from j to i). Splitting the decay into e^{c_i} e^{−c_j}, c the sum of gates,
would overflow; it is split at a step between the two instead, so that both factors are products
of gates, at most 1. Blocks double in size: their steps are split where left and right half meet.
(The paper, arXiv 2312.06635, section 4.3, does so in two levels.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.chunks import chunk_for, from_chunks, pass_on, to_chunks
from decision_s4.kernels.packing import Packing

CHUNK = 16  # of 16, 32 the faster for K = 16 … 64 and T = 100 … 8,000; it pads episodes less


class Blocks(NamedTuple):
    """Chunks cut into n blocks of h steps, each (M, H, n, h, …)."""

    since: Tensor
    """(…, h, K) decay from a block's beginning up to and with step i."""
    until: Tensor
    """(…, h, K) decay after step j up to the block's end."""
    weights: Tensor
    """(…, h, h) weight of step j in step i, 0 for j > i."""


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See `gated_linear`."""
    layout = packing.chunks(chunk_for(packing.longest, chunk))
    if not layout.counts:
        return torch.zeros_like(v), state
    q, k, v, log_gate = (to_chunks(each, layout).transpose(1, 2) for each in (q, k, v, log_gate))
    since, until, weights = (each.squeeze(2) for each in attend(q, k, torch.exp(log_gate)))
    gain = torch.matmul((k * until).transpose(2, 3), v)  # (M, H, K, V)
    before, final = pass_on(gain, since[:, :, -1, :, None], state, layout)
    o = torch.matmul(q * since, before) + torch.matmul(weights, v)  # (M, H, L, V)
    return from_chunks(o.transpose(1, 2), layout, len(packing.start)), final


def attend(q: Tensor, k: Tensor, gate: Tensor) -> Blocks:
    """One block over each whole chunk of q, k, gate (M, H, L, K), from blocks of one step."""
    q, k, gate = (each[..., None, :] for each in (q, k, gate))  # (M, H, L, 1, K)
    blocks = Blocks(gate, torch.ones_like(gate), (q * k).sum(-1, keepdim=True))
    while blocks.weights.shape[2] > 1:
        blocks = _double(q, k, blocks)
        q, k = (each.unflatten(2, (-1, 2)).flatten(3, 4) for each in (q, k))
    return blocks


def _double(q: Tensor, k: Tensor, blocks: Blocks) -> Blocks:
    """Join blocks two and two; q and k are cut as `blocks` is."""
    (since, late), (early, until), (first, second) = (_halves(each) for each in blocks)
    (_, q), (k, _) = _halves(q), _halves(k)
    across = torch.matmul(q * late, (k * early).transpose(-1, -2))  # (…, n / 2, h, h)
    return Blocks(
        since=torch.cat([since, late * since[..., -1:, :]], dim=-2),
        until=torch.cat([early * late[..., -1:, :], until], dim=-2),
        weights=torch.cat(
            [
                torch.cat([first, torch.zeros_like(across)], dim=-1),
                torch.cat([across, second], dim=-1),
            ],
            dim=-2,
        ),
    )


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, H, n, …) -> the even and the odd blocks, (M, H, n / 2, …) each."""
    return x[:, :, 0::2], x[:, :, 1::2]
