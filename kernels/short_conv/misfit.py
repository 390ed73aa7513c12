"""What the fused short_conv does not take; Triton need not be installed to know."""

import torch
from torch import Tensor

MOST_TAPS = 8
TYPES = torch.float32, torch.bfloat16


def misfit(x: Tensor, weight: Tensor) -> str | None:
    """The reason in words for `x` and `weight`; None if it takes them."""
    if x.dtype not in TYPES or weight.dtype not in TYPES:
        return f"needs float32 or bfloat16, not {x.dtype} and {weight.dtype}"
    taps = weight.shape[1]
    return None if taps <= MOST_TAPS else f"takes up to {MOST_TAPS} taps, not {taps}"
