"""What the fused kernels do not take; apart, for it is asked where Triton need not be."""

import torch

from decision_s4.kernels import nvrtc
from decision_s4.kernels.selective_scan.arguments import Arguments

MAX_STATES = 256  # a program of Triton's holds all states of its channels
MAX_STATES_OF_CUDA = 64  # eight lanes of eight
MAX_BLOCKS = 65_535  # of channels: a limit of CUDA's


def misfit(dtype: torch.dtype, size: int) -> str | None:
    """Why not Triton's; None if they do.

    Args:
        dtype: of the sums.
        size: N, states a channel.
    """
    if dtype != torch.float32:
        return "needs bfloat16 or float32, not float64"
    return f"takes N up to {MAX_STATES}, not {size}" if size > MAX_STATES else None


def misfit_of_cuda(arguments: Arguments) -> str | None:
    """Why not those in CUDA C++; None if they do."""
    if arguments.u.device.type != "cuda":
        return f"needs tensors on CUDA, not {arguments.u.device.type}"
    (_, steps, channels), size = arguments.u.shape, arguments.A.shape[1]
    if arguments.dtype != torch.float32:
        return "needs bfloat16 or float32, not float64"
    if size > MAX_STATES_OF_CUDA:
        return f"takes N up to {MAX_STATES_OF_CUDA}, not {size}"
    if steps * max(channels, size) >= 1 << 31 or channels > 16 * MAX_BLOCKS:
        return f"takes up to 2^31 elements a row, not {steps} × {channels}"
    return nvrtc.misfit(arguments.u.device)
