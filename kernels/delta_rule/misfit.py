"""What the fused delta_rule does not take; Triton need not be installed to know."""

import torch
from torch import Tensor

MAX_KEYS = 128  # a program holds a state's whole column
MAX_STEPS = 65_535 * 16  # a grid has no more chunks


def misfit(q: Tensor, k: Tensor, w: Tensor, v: Tensor) -> str | None:
    """The reason in words for q, k, w (…, K), v (…, V); None if it takes them."""
    for x in (q, k, w, v):
        if x.dtype not in (torch.float32, torch.bfloat16):
            return f"needs bfloat16 or float32, not {x.dtype}"
    if k.shape[-1] > MAX_KEYS:
        return f"takes K up to {MAX_KEYS}, not {k.shape[-1]}"
    if v.dim() == 4 and v.shape[1] > MAX_STEPS:
        return f"takes rows of up to {MAX_STEPS:,} steps, not {v.shape[1]:,}"
    return None
