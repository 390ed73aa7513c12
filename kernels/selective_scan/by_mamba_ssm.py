"""selective_scan by mamba-ssm's CUDA kernels, which know neither starts nor a state carried in."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.selective_scan.arguments import Arguments
from decision_s4.kernels.selective_scan.misfit import MAX_STATES


def misfit(arguments: Arguments, fresh: bool) -> str | None:
    """Why it cannot run on these; None if it can. `fresh`: no state was given."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "needs mamba-ssm: pip install --no-build-isolation -e '.[mamba-ssm]'"
    if arguments.u.device.type != "cuda":
        return f"needs tensors on CUDA, not {arguments.u.device.type}"
    if arguments.dtype != torch.float32:
        return "needs bfloat16 or float32, not float64"
    if arguments.A.shape[1] > MAX_STATES:
        return f"takes N up to {MAX_STATES}, not {arguments.A.shape[1]}"
    if arguments.start is not None:
        return "knows no episode starts"
    return None if fresh else "takes no state"


def scan(arguments: Arguments, fresh: bool) -> tuple[Tensor, Tensor]:
    """See `selective_scan`.

    Raises:
        ValueError: for what it does not take, and for a gradient through the final state.
    """
    reason = misfit(arguments, fresh)
    if reason is not None:
        raise ValueError(f"selective_scan: impl 'mamba-ssm' {reason}; use 'triton' or 'torch'")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # an extra

    a, kinds = arguments, {arguments.u.dtype, arguments.delta.dtype, arguments.B.dtype}
    low = a.u.dtype if len(kinds) == 1 else torch.float32  # it wants one type for all of these
    u, delta, B, C, z = (_by_channel(x, low) for x in (a.u, a.delta, a.B, a.C, a.z))
    A, D, bias = (x if x is None else x.float() for x in (a.A, a.D, a.delta_bias))
    y, final = selective_scan_fn(u, delta, A, B, C, D, z, bias, a.delta_softplus, True)
    return y.transpose(1, 2).to(a.u.dtype), _NoGradient.apply(final.float())


def _by_channel(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, T, …) -> (B, …, T), as the kernels read it."""
    return None if x is None else x.to(dtype).transpose(1, 2).contiguous()


class _NoGradient(torch.autograd.Function):
    """The identity. mamba-ssm would drop a gradient through its final state without a word."""

    @staticmethod
    def forward(ctx: Any, final: Tensor) -> Tensor:
        return final.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError(
            "selective_scan: impl 'mamba-ssm' has no gradient through the final state; use 'triton'"
        )
