"""flash-linear-attention, from the extra `cuda`, over packed rows.

Its kernels know no starts inside a row, but sequences of any length laid end to end: an episode is
such a sequence, with a state of its own before it, so that resets are exact.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing

TYPES = (torch.bfloat16, torch.float32)
MOST_KEYS = 256
PROVEN = True  # tests/kernels/test_fla.py has passed on a GPU, each kernel as `settle` leaves it


def misfit(*tensors: Tensor) -> str | None:
    """Why it cannot run on these; None if it can."""
    if importlib.util.find_spec("fla") is None:
        return "needs flash-linear-attention: pip install -e '.[cuda]'"
    for x in tensors:
        if x.device.type != "cuda":
            return f"needs tensors on CUDA, not {x.device.type}"
        if x.dtype not in TYPES:
            return f"needs bfloat16 or float32, not {x.dtype}"
    keys = tensors[0].shape[-1]
    return None if keys <= MOST_KEYS else f"takes K up to {MOST_KEYS}, not {keys}"


def unasked(*tensors: Tensor) -> str | None:
    """Why it is not taken without being named; None if it may be.

    It multiplies float32 in TF32, three digits, which torch leaves to its user to allow.
    """
    if not PROVEN:
        return "runs only by name yet"
    exact = torch.get_float32_matmul_precision() == "highest"
    if exact and any(x.dtype == torch.float32 for x in tensors):
        return "takes float32 in TF32, for which torch.set_float32_matmul_precision('high') asks"
    return misfit(*tensors)


@functools.cache
def settle(op: Callable, most: int = 1) -> None:
    """Holds the kernels of `op`, and all that fla has loaded, to `most` configurations each.

    fla tunes every kernel among up to 96 of them at each new shape: more than six minutes of a core
    before the first result. What has not been run has not been tested either (its issue 640).
    """
    tuner = sys.modules.get("triton.runtime.autotuner")
    modules = [module for name, module in sys.modules.items() if name.startswith("fla.")]
    for kernel in (value for module in modules for value in vars(module).values()):
        while tuner is not None and isinstance(kernel, tuner.Heuristics):
            kernel = kernel.fn
        if tuner is not None and isinstance(kernel, tuner.Autotuner):
            kernel.configs = sorted(kernel.configs, key=_strangeness)[:most]


def _strangeness(config: Any) -> tuple[int, int]:
    """0 at four warps and two stages."""
    return abs(config.num_warps.bit_length() - 3), abs(config.num_stages - 2)


def check(op: str, *tensors: Tensor) -> None:
    """Raises ValueError where it cannot run."""
    reason = misfit(*tensors)
    if reason is not None:
        raise ValueError(f"{op}: impl 'fla' {reason}; use 'torch'")


def scan(
    op: Callable[..., tuple[Tensor, Tensor]],
    inputs: tuple[Tensor, ...],
    state: Tensor,
    packing: Packing,
) -> tuple[Tensor, Tensor]:
    """What `op` of fla makes of each episode.

    Args:
        op: takes inputs (1, S, …), their scale, and sequences of lengths of their own.
        inputs: (B, T, …) each, values third.
        state: (B, H, K, V) carried in.
        packing: where episodes start.

    Returns:
        (o (B, T, H, V), 0 at steps that are not valid; final state (B, H, K, V)).
    """
    settle(op)
    sequences = packing.sequences
    if len(sequences.bounds) == 1:
        return torch.zeros_like(inputs[2]), state
    flat = [x.flatten(0, 1) for x in inputs]
    if packing.valid is not None:
        flat = [x[sequences.steps] for x in flat]
    before = state.new_zeros(len(sequences.bounds) - 1, *state.shape[1:])
    before = before.index_copy(0, sequences.carried, state[sequences.carry_rows])
    o, after = op(
        *(x[None] for x in flat),
        scale=1.0,
        initial_state=before.to(torch.promote_types(before.dtype, torch.float32)),
        output_final_state=True,
        cu_seqlens=sequences.bounds,
    )
    o, after = o[0], after.to(state.dtype)
    if packing.valid is not None:
        o = o.new_zeros(packing.rows * packing.steps, *o.shape[1:]).index_copy(
            0, sequences.steps, o
        )
    final = state.index_copy(0, sequences.final_rows, after[sequences.final])
    return o.unflatten(0, (packing.rows, packing.steps)), final
