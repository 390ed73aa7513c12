"""delta_rule by chunks: what a chunk writes by one triangular solve, the rest as gated attention.

Shapes: H heads, K key and V value width, M chunks of L steps. Step i writes u_i = v_i − Sᵀ k_i at
w_i, where S is what it finds: the state S₀ before the chunk and what steps j < i wrote, decayed,

    u_i = v_i − (k_i ⊙ since_i)ᵀ S₀ − Σ_{j<i} A_ij u_j,   A_ij = k_i · (w_j ⊙ decay from j to i)

so that U = (I + A)⁻¹ V − (I + A)⁻¹ K_since S₀ (the WY form: Yang et al., arXiv 2406.06484,
section 3.2; with decays arXiv 2412.06464). With U as values it is gated linear attention, whose
`attend` gives all products with decays, none of which can overflow.
"""

import torch
from torch import Tensor

from decision_s4.kernels.chunks import chunk_for, from_chunks, pass_on, to_chunks
from decision_s4.kernels.gated_linear.chunked import attend
from decision_s4.kernels.packing import Packing

CHUNK = 16  # of 8 … 64 the fastest forward and backward at K = V = 16; longer ones round more


def scan(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    layout = packing.chunks(chunk_for(packing.longest, chunk))
    if not layout.counts:
        return torch.zeros_like(v), state
    inputs = (q, k, w, v, log_gate)
    q, k, w, v, log_gate = (to_chunks(each, layout).transpose(1, 2) for each in inputs)
    gate = torch.exp(log_gate)
    since, until, weights = (each.squeeze(2) for each in attend(q, w, gate))
    found = attend(k, w, gate).weights.squeeze(2)
    alone, by_state = _solve(found, v, k * since)

    late = (w * until).transpose(2, 3)  # (M, H, K, L)
    kept = torch.diag_embed(since[:, :, -1] * torch.ones_like(w[:, :, -1]))
    kept = kept - torch.matmul(late, by_state)  # (M, H, K, K)
    before, final = pass_on(torch.matmul(late, alone), kept, state, layout, torch.matmul)
    written = alone - torch.matmul(by_state, before)
    o = torch.matmul(q * since, before) + torch.matmul(weights, written)  # (M, H, L, V)
    return from_chunks(o.transpose(1, 2), layout, packing.rows), final


def _solve(found: Tensor, v: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """(I + A)⁻¹ of v and of k, A the part of `found` (M, H, L, L) below the diagonal."""
    both = torch.cat([v, k], dim=-1)
    solved = torch.linalg.solve_triangular(found.tril(-1), both, upper=False, unitriangular=True)
    return solved.split([v.shape[-1], k.shape[-1]], dim=-1)
