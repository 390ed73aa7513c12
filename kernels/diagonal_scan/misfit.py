"""What the fused diagonal_scan does not take; Triton need not be installed to know."""

import torch
from torch import Tensor


def misfit(u: Tensor) -> str | None:
    """The reason in words for `u`; None if it takes it."""
    return None if u.dtype == torch.complex64 else f"needs complex64, not {u.dtype}"
