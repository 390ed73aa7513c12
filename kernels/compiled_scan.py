"""Matrix states along marked rows in C++, as a node of autograd: gated_linear, delta_rule."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.packing import Packing

Library = Callable[[], ModuleType | None]


def scan(
    op: str, library: Library, inputs: Sequence[Tensor], packing: Packing
) -> tuple[Tensor, Tensor]:
    """(o, final state) of `inputs`, each step's vectors, then log gate and state.

    All are of one type. A vector may be (B, T, 1, ·), shared by the heads, a gate (B, T, H, 1).
    Raises ValueError or RuntimeError where the library of `op` cannot run.
    """
    choice.check_compiled(op, inputs[-1], library)
    return CompiledScan.apply(op, library, torch.is_grad_enabled(), packing.marks, *inputs)


class CompiledScan(torch.autograd.Function):
    """(op, library, whether to keep, marks (B, T), vectors …, log gate, state) -> (o, state)."""

    @staticmethod
    def forward(
        ctx: Any, op: str, library: Library, keep: bool, marks: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        *vectors, log_gate, state = (x.contiguous() for x in inputs)
        steps, keep = [*vectors, log_gate.exp()], keep and any(ctx.needs_input_grad)
        compiled = choice.check_library(op, library)
        o, final, before = compiled.forward(*steps, state, marks, keep)
        ctx.op, ctx.library = op, library
        ctx.save_for_backward(*steps, marks, before)
        return o, final

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives(ctx.op, "cpu")
        *steps, marks, before = ctx.saved_tensors
        compiled = choice.check_library(ctx.op, ctx.library)
        given = marks, before, d_o.contiguous(), d_final.contiguous()
        *found, d_state = compiled.backward(*steps, *given)
        shared = (d.sum_to_size(x.shape) for d, x in zip(found, steps, strict=True))
        return None, None, None, None, *shared, d_state
