"""What the fused almost_linear does not take; Triton need not be installed to know."""

import torch
from torch import Tensor

WIDEST = 128


def misfit(u: Tensor, weight: Tensor) -> str | None:
    """The reason in words for `u` and `weight`; None if it takes them."""
    for each in (u.dtype, weight.dtype):
        if each not in (torch.float32, torch.bfloat16):
            return f"needs float32 or bfloat16, not {each}"
    units = len(weight)
    return None if units <= WIDEST else f"takes up to {WIDEST} units, not {units}"
