"""diagonal_scan by chunks: all chunks run side by side, then the state is passed between them.

Shapes: P poles, L chunk length, M chunks. T steps take L operations inside the chunks and about
T / L between them, each on many chunks at once, instead of T on few rows. Episodes are cut so
that no chunk holds two (see chunk_layout.py); a reset therefore costs nothing and needs no mask.
"""

import torch
from torch import Tensor

from decision_s4.kernels.chunks import states_before
from decision_s4.kernels.packing import Packing

CHUNK = 32  # about √T: of 16, 32, 64 the fastest at B = 4, T = 1000 for P = 32 … 128


def scan(
    u: Tensor, a: Tensor, state: Tensor, packing: Packing, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """See `diagonal_scan`."""
    layout = packing.chunks(chunk)
    if not layout.counts:
        return torch.zeros_like(u), state
    flat = u.flatten(0, 1)
    padded = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
    alone = _run(padded[layout.source.flip(1).T], a)  # (L, M, P): from a zero state each
    powers = _powers(a, chunk)
    before = states_before(
        alone[-1], state, layout, lambda x, gained, _: torch.addcmul(gained, x, powers[-1])
    )
    x = torch.stack(alone) + powers[:, None] * before

    final = x[layout.final_lengths - 1, layout.final_chunks]
    final = state.index_copy(0, layout.final_rows, final)
    x = x.transpose(0, 1).flatten(0, 1)
    x = torch.cat([x, x.new_zeros(1, x.shape[1])])[layout.target]
    return x.view_as(u), final


def _run(u: Tensor, a: Tensor) -> list[Tensor]:
    """The recurrence along the first dimension, from zero."""
    first, *rest = u.unbind(0)
    states = [first]
    for u_t in rest:
        states.append(torch.addcmul(u_t, states[-1], a))
    return states


def _powers(a: Tensor, length: int) -> Tensor:
    """a^1 … a^L (L, P), by doubling: far cheaper than complex `pow`."""
    powers, square = a[None], a
    while len(powers) < length:
        powers = torch.cat([powers, powers * square])
        square = square * square
    return powers[:length]
