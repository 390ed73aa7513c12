"""Which implementation runs where none is named, said once in the log; where the fused can."""

import functools
import importlib.util
import logging
import os

import torch

LOG = logging.getLogger(__name__)
NO_FLA = "has no such kernel"


def fastest(
    op: str, device: torch.device, misfit: str | None = None, fla: str | None = NO_FLA
) -> str:
    """ "triton" for tensors on CUDA unless there is a `misfit`; then "fla" if it may, or "torch".

    Args:
        op: name in the log.
        misfit: what the fused kernels of `op` do not take of these tensors; None: nothing.
        fla: why flash-linear-attention is not taken for these; None: it may be.
    """
    if device.type != "cuda":
        return "torch"
    if misfit is None and importlib.util.find_spec("triton") is None:
        misfit = "Triton is not installed"
    chosen = "triton" if misfit is None else "fla" if fla is None else "torch"
    if chosen == "torch" and fla != NO_FLA:
        misfit = f"{misfit}; 'fla' {fla}"
    _say(op, chosen, misfit)
    return chosen


def check(op: str, device: torch.device, misfit: str | None) -> None:
    """Raises ValueError where the fused kernels of `op` cannot run; arguments as in `fastest`."""
    if device.type != "cuda" and not interpreted():
        raise ValueError(f"{op}: impl 'triton' needs tensors on CUDA, not {device.type}")
    if misfit is not None:
        raise ValueError(f"{op}: impl 'triton' {misfit}; use 'torch'")


def interpreted() -> bool:
    """Whether Triton runs its programs in Python, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _say(op: str, chosen: str, misfit: str | None) -> None:
    LOG.info("%s: '%s' runs on cuda%s", op, chosen, "" if misfit is None else f": {misfit}")
