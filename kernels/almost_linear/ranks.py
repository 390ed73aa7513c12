"""almost_linear as a loop over ranks, the k-th steps of all episodes at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.kernels.almost_linear.naive import step
from decision_s4.kernels.gated_scan.order import pack, shrink, unpack
from decision_s4.kernels.packing import Packing


def scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    linear: int,
    state: Tensor,
    packing: Packing,
    bend: Callable[[Tensor], Tensor] = torch.relu,
) -> tuple[Tensor, Tensor]:
    """See `almost_linear`; `bend` is what the last units pass."""
    layout = packing.chunks(1)
    if not layout.counts:
        return torch.zeros_like(u), state
    inputs, before = pack(u, state[:, None], layout)
    z = before[:, 0]
    units: list[Tensor] = []
    ended: list[Tensor] = []
    for u_t in inputs.split(layout.counts):
        z = step(u_t, shrink(z, len(u_t), ended), decay, weight, linear, bend)
        units.append(z)
    after = torch.cat([z, *reversed(ended)])[:, None]
    z, after = unpack(torch.cat(units), after, state[:, None], layout, u.shape[1])
    return z, after[:, 0]
