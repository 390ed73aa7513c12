"""delta_rule in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    q: Tensor, k: Tensor, w: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    choice.check_compiled("delta_rule", state, library)
    inputs = (x.to(state.dtype) for x in (q, k, w, v, log_gate, state))
    return CompiledScan.apply(torch.is_grad_enabled(), packing.marks, *inputs)


class CompiledScan(torch.autograd.Function):
    """(whether to keep, marks (B, T), q, k, w, v, log gate, state) -> (o, final state)."""

    @staticmethod
    def forward(ctx: Any, keep: bool, marks: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *steps, log_gate, state = (x.contiguous() for x in inputs)
        steps, keep = [*steps, log_gate.exp()], keep and any(ctx.needs_input_grad)
        compiled = choice.check_library("delta_rule", library)
        o, final, before = compiled.forward(*steps, state, marks, keep)
        ctx.save_for_backward(*steps, marks, before)
        return o, final

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("delta_rule", "cpu")
        given = d_o.contiguous(), d_final.contiguous()
        compiled = choice.check_library("delta_rule", library)
        *found, d_gate, d_state = compiled.backward(*ctx.saved_tensors, *given)
        if ctx.saved_tensors[4].shape != d_gate.shape:
            d_gate = d_gate.sum(-1, keepdim=True)
        return None, None, *found, d_gate, d_state
