"""Which implementation runs where none is named, said once in the log; what each can do."""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
NO_FLA = "has no such kernel"
COMPILED = (torch.float32, torch.float64)
COMPLEX = (*COMPILED, torch.complex64, torch.complex128)


def fastest(
    op: str,
    device: torch.device,
    misfit: str | None = None,
    fla: str | None = NO_FLA,
    otherwise: str = "torch",
) -> str:
    """ "triton" for tensors on CUDA unless there is a `misfit`; then "fla" if it may, or
    `otherwise`.

    Args:
        op: name in the log.
        misfit: what the fused kernels of `op` do not take of these tensors; None: nothing.
        fla: why flash-linear-attention is not taken for these; None: it may be.
        otherwise: what runs on CUDA in place of both.
    """
    if device.type != "cuda":
        return "torch"
    if misfit is None and importlib.util.find_spec("triton") is None:
        misfit = "Triton is not installed"
    chosen = "triton" if misfit is None else "fla" if fla is None else otherwise
    if chosen == otherwise and fla != NO_FLA:
        misfit = f"{misfit}; 'fla' {fla}"
    return say(op, chosen, misfit)


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
def fastest_on_cpu(
    op: str,
    device: str,
    dtype: torch.dtype,
    more: str = "",
    types: tuple[torch.dtype, ...] = COMPILED,
) -> str:
    """ "cpu", the library of `op`, for the `types` it takes where it compiles, else "torch"; the
    log says so, and `more`."""
    impl = "torch"
    if device == "cpu" and dtype in types:
        compiled = importlib.import_module(f"decision_s4.kernels.{op}.cpu")
        impl = "cpu" if compiled.library() else "torch"
    LOG.info("%s: '%s' runs on %s in %s%s", op, impl, device, dtype, more)
    return impl


def check_compiled(
    op: str,
    tensor: Tensor,
    library: Callable[[], ModuleType | None],
    types: tuple[torch.dtype, ...] = COMPILED,
) -> None:
    """Raises ValueError where the C++ library of `op` does not take such tensors, RuntimeError
    where there is none."""
    if tensor.device.type != "cpu" or tensor.dtype not in types:
        *others, last = (str(each).removeprefix("torch.") for each in types)
        raise ValueError(
            f"{op}: impl 'cpu' needs {', '.join(others)} or {last} on the CPU, not {tensor.dtype} "
            f"on {tensor.device}; use 'torch'"
        )
    check_library(op, library)


def check_library(op: str, library: Callable[[], ModuleType | None]) -> ModuleType:
    """The C++ library of `op`. Raises RuntimeError where it cannot be built."""
    compiled = library()
    if compiled is None:
        raise RuntimeError(
            f"{op}: impl 'cpu' needs a C++ compiler and ninja; install them or use 'torch'"
        )
    return compiled


def refuse_second_derivatives(op: str, impl: str) -> None:
    """Called in a backward pass by hand. Raises RuntimeError where it is recorded: autograd would
    take what was saved for constants, which is wrong, and silent."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{op}: impl '{impl}' has no second derivatives; use impl='naive', or no create_graph"
        )


@functools.cache
def say(op: str, chosen: str, misfit: str | None = None) -> str:
    """Returns `chosen`, said once in the log."""
    LOG.info("%s: '%s' runs on cuda%s", op, chosen, "" if misfit is None else f": {misfit}")
    return chosen
