"""flash-linear-attention, from the extra `cuda`, over packed rows.

Its kernels know no starts inside a row, but sequences of any length laid end to end: an episode is
such a sequence, with a state of its own before it, so that resets are exact.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from decision_s4.kernels.packing import Packing

TYPES = (torch.bfloat16, torch.float32)
PROVEN = False  # whether tests/kernels/test_fla.py has passed on a GPU: not taken unasked before


def misfit(*tensors: Tensor) -> str | None:
    """Why it cannot run on these; None if it can."""
    if importlib.util.find_spec("fla") is None:
        return "needs flash-linear-attention: pip install 'decision-s4[cuda]'"
    for x in tensors:
        if x.device.type != "cuda":
            return f"needs tensors on CUDA, not {x.device.type}"
        if x.dtype not in TYPES:
            return f"needs bfloat16 or float32, not {x.dtype}"
    return None


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
