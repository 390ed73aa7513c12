"""almost_linear as the equation, step by step: the oracle of the fast paths, and acting's step."""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing


def step(
    u: Tensor,
    z: Tensor,
    decay: Tensor,
    weight: Tensor,
    linear: int,
    bend: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    """One step: u, z (B, M) -> the new z. `bend` is what the last units pass."""
    plain, bent = z.tensor_split([linear], dim=1)
    opened = torch.cat([plain, bend(bent)], dim=1)
    return torch.addcmul(torch.addmm(u, opened, weight.T), decay, z)


def scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    linear: int,
    state: Tensor,
    packing: Packing,
    bend: Callable[[Tensor], Tensor] = torch.relu,
) -> tuple[Tensor, Tensor]:
    """See `almost_linear`."""
    valid = torch.ones_like(packing.start) if packing.valid is None else packing.valid
    masks = packing.start.unbind(1), valid.unbind(1)
    u, outputs = torch.where(valid[..., None], u, 0.0), []  # NaN in a hole would reach gradients
    for u_t, start_t, valid_t in zip(u.unbind(1), *masks, strict=True):
        before = torch.where(start_t[:, None], 0.0, state)
        after = step(u_t, before, decay, weight, linear, bend)
        state = torch.where(valid_t[:, None], after, state)
        outputs.append(torch.where(valid_t[:, None], after, 0.0))
    return torch.stack(outputs, dim=1), state
