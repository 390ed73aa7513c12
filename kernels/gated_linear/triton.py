"""gated_linear fused for CUDA: two launches forward, two backward, resets inside.

What is kept for the backward pass beside the inputs is the state before each chunk of L steps and,
with a gate a key, the weights of its steps in each other.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.choice import check
from decision_s4.kernels.gated_linear import triton_kernels as kernels
from decision_s4.kernels.gated_linear.misfit import misfit
from decision_s4.kernels.packing import Packing

VALUES = 64  # of a tile of the state
REGISTERS = 168  # a thread of `outputs` in bfloat16: three programs side by side, not two


class Config(NamedTuple):
    """How the kernels are launched."""

    chunk: int
    """L."""
    warps: int


SHORT, LONG = Config(32, 4), Config(64, 4)
# With a gate a key, LONG is miscompiled: in bfloat16 its outputs are wrong by 8e-2 on an H100.
PER_KEY = (Config(16, 4), SHORT, Config(64, 8))
PER_HEAD = (*PER_KEY, LONG)


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `gated_linear`; q and k may be (B, T, 1, K), shared by the heads."""
    check("gated_linear", q.device, misfit(q, k, v))
    config = config or _config(q, v, log_gate)
    inputs = q, k, v, log_gate, state
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with torch.cuda.device_of(v):
        return FusedScan.apply(*inputs, packing.marks, config, keep)


def _config(q: Tensor, v: Tensor, log_gate: Tensor) -> Config:
    """Long chunks where a head has one gate, unless operands would overfill shared memory."""
    wide = v.dtype == torch.float32 and q.shape[-1] > 64
    return SHORT if log_gate.shape[-1] > 1 or wide else LONG


class Inputs(NamedTuple):
    """Contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_gate: Tensor
    marks: Tensor

    def flags(self, chunk: int) -> dict[str, Any]:
        """What the kernels are specialised for."""
        keys, low = self.q.shape[3], self.v.dtype == torch.bfloat16
        return {
            "HEADS": self.v.shape[2],
            "V": self.v.shape[3],
            "K": keys,
            "KEYS": max(16, triton.next_power_of_2(keys)),
            "VALUES": min(VALUES, max(16, triton.next_power_of_2(self.v.shape[3]))),
            "L": chunk,
            "LEVELS": chunk.bit_length() - 1,
            "PER_KEY": self.log_gate.shape[3] > 1,
            "SHARED": self.q.shape[2] < self.v.shape[2],
            "PRECISION": "bf16" if low else "tf32x3",
            "EXACT": "parts" if low else "tf32x3",
        }


class FusedScan(torch.autograd.Function):
    """Every argument of `gated_linear`, the packing as its marks; whether to keep weights."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_gate: Tensor,
        state: Tensor,
        marks: Tensor,
        config: Config,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(*(x.contiguous() for x in (q, k, v, log_gate, marks)))
        flags = inputs.flags(_chunk(v.shape[1], config.chunk))
        flags["num_warps"] = config.warps
        state, o = state.float().contiguous(), torch.empty_like(inputs.v)
        before, final = _carry(inputs, inputs.k, inputs.v, state, flags, reverse=False)
        chunks, values = before.shape[1], triton.cdiv(v.shape[3], flags["VALUES"])
        keep = keep and flags["PER_KEY"]
        side = flags["L"]
        within = before.new_empty(len(before), chunks, side, side) if keep else None
        grid = len(before), chunks, values
        limit = {"maxnreg": REGISTERS} if v.dtype == torch.bfloat16 else {}
        kernels.outputs[grid](*inputs, before, o, within, v.shape[1], **flags, **limit, KEEP=keep)
        ctx.save_for_backward(*inputs, before, within)
        ctx.flags = flags
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, before, within = ctx.saved_tensors
        inputs, do = Inputs(*inputs), do.contiguous()
        after, dstate = _carry(inputs, inputs.q, do, dfinal.contiguous(), ctx.flags, reverse=True)
        wide = (*inputs.v.shape[:3], inputs.q.shape[3])
        dq, dk = (x.new_empty(wide) for x in (inputs.q, inputs.k))
        dv, dgate = torch.empty_like(inputs.v), torch.empty_like(inputs.log_gate)
        kernels.gradients[before.shape[:2]](
            *inputs, before, within, after, do, dq, dk, dv, dgate,
            do.shape[1], **ctx.flags,
        )  # fmt: skip
        if ctx.flags["SHARED"]:
            dq, dk = (x.sum(2, keepdim=True) for x in (dq, dk))
        return dq, dk, dv, dgate, dstate, None, None, None


def _carry(
    inputs: Inputs, x: Tensor, y: Tensor, begin: Tensor, flags: dict[str, Any], reverse: bool
) -> tuple[Tensor, Tensor]:
    """The state (B·H, chunks, K, V) before each chunk, or its gradient after each; and the last."""
    steps, value = y.shape[1], y.shape[3]
    sequences, chunks = begin.shape[0] * begin.shape[1], triton.cdiv(steps, flags["L"])
    exact = "tf32" if inputs.log_gate.dtype == torch.bfloat16 else "tf32x3"  # as timed
    kept, end = y.new_empty(sequences, chunks, *begin.shape[2:]), torch.empty_like(begin)
    kernels.carry[sequences, triton.cdiv(value, flags["VALUES"])](
        x, y, inputs.log_gate, inputs.marks, begin, kept, end,
        steps, **flags | {"EXACT": exact}, REVERSE=reverse,
    )  # fmt: skip
    return kept, end


def _chunk(steps: int, longest: int) -> int:
    """No longer than the row needs, at least the 16 that a matrix product takes."""
    return min(longest, max(16, triton.next_power_of_2(steps)))
