"""What the fused delta_rule does not take; Triton need not be installed to know."""

import functools

import torch
from torch import Tensor

MAX_KEYS = 128  # a program holds a state's whole column
MAX_STEPS = 65_535 * 16  # a grid has no more chunks
MEMORY = {  # bytes that a block shares, as compiled for compute capability 8.9 and 9.0
    torch.bfloat16: {64: 41_000, MAX_KEYS: 91_000},
    torch.float32: {64: 82_000, MAX_KEYS: 148_000},
}


def misfit(q: Tensor, k: Tensor, w: Tensor, v: Tensor) -> str | None:
    """The reason in words for q, k, w (…, K), v (…, V); None if it takes them."""
    for x in (q, k, w, v):
        if x.dtype not in (torch.float32, torch.bfloat16):
            return f"needs bfloat16 or float32, not {x.dtype}"
    if k.shape[-1] > MAX_KEYS:
        return f"takes K up to {MAX_KEYS}, not {k.shape[-1]}"
    if v.dim() == 4 and v.shape[1] > MAX_STEPS:
        return f"takes rows of up to {MAX_STEPS:,} steps, not {v.shape[1]:,}"
    needed = MEMORY[v.dtype][64 if k.shape[-1] <= 64 else MAX_KEYS]
    if v.is_cuda and shared_memory(v.device) < needed:
        return f"needs {needed / 1e3:.0f} kB of shared memory a block in {v.dtype}"
    return None


@functools.cache
def shared_memory(device: torch.device) -> float:
    """Bytes that a block may share there, or infinity if torch does not know."""
    about = torch.cuda.get_device_properties(device)
    return getattr(about, "shared_memory_per_block_optin", float("inf"))
