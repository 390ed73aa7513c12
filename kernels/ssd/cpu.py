"""ssd in C++: gated linear attention with a gate a head, q = C and k = B for all heads."""

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.gated_linear import cpu
from decision_s4.kernels.packing import Packing

library = cpu.library


def scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `ssd`."""
    choice.check_compiled("ssd", state, library)
    x, delta, A, B, C = (each.to(state.dtype) for each in (x, delta, A, B, C))
    if packing.valid is not None:  # else a product's gradient were 0 · NaN where a hole holds NaN
        valid = packing.valid[..., None]
        x, delta = torch.where(valid[..., None], x, 0), torch.where(valid, delta, 0)
    shared, v, log_gate = (C[:, :, None], B[:, :, None]), x * delta[..., None], delta * A
    y, final = cpu.scan(*shared, v, log_gate[..., None], state.transpose(2, 3), packing)
    return y, final.transpose(2, 3)
