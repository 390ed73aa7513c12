"""What the fused gated_linear does not take; Triton need not be installed to know."""

import torch
from torch import Tensor

MAX_KEYS = 128  # a program holds a state's whole column


def misfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The reason in words for q and k (…, K), v (…, V); None if it takes them."""
    for x in (q, k, v):
        if x.dtype not in (torch.float32, torch.bfloat16):
            return f"needs bfloat16 or float32, not {x.dtype}"
    if k.shape[-1] > MAX_KEYS:
        return f"takes K up to {MAX_KEYS}, not {k.shape[-1]}"
    return None
