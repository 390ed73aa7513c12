"""What the fused kernels do not take; apart, for it is asked where Triton need not be."""

import torch

MAX_STATES = 256  # a program holds all states of its channels


def misfit(dtype: torch.dtype, size: int) -> str | None:
    """Why not these; None if they do.

    Args:
        dtype: of the sums.
        size: N, states a channel.
    """
    if dtype != torch.float32:
        return "needs bfloat16 or float32, not float64"
    return f"takes N up to {MAX_STATES}, not {size}" if size > MAX_STATES else None
