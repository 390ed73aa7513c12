"""gated_linear in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_linear`; of one type. q and k may be (B, T, 1, K), shared by the heads."""
    choice.check_compiled("gated_linear", state, library)
    inputs = q, k, v, log_gate, state
    return CompiledScan.apply(torch.is_grad_enabled(), packing.marks, *inputs)


class CompiledScan(torch.autograd.Function):
    """(whether to keep, marks (B, T), q, k, v, log gate, state) -> (o, final state)."""

    @staticmethod
    def forward(ctx: Any, keep: bool, marks: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *steps, log_gate, state = (x.contiguous() for x in inputs)
        steps, keep = [*steps, log_gate.exp()], keep and any(ctx.needs_input_grad)
        compiled = choice.check_library("gated_linear", library)
        o, final, before = compiled.forward(*steps, state, marks, keep)
        ctx.save_for_backward(*steps, marks, before)
        return o, final

    @staticmethod
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("gated_linear", "cpu")
        given = d_o.contiguous(), d_final.contiguous()
        compiled = choice.check_library("gated_linear", library)
        d_q, d_k, *found = compiled.backward(*ctx.saved_tensors, *given)
        if ctx.saved_tensors[0].shape != d_q.shape:
            d_q, d_k = (x.sum(2, keepdim=True) for x in (d_q, d_k))
        return None, None, d_q, d_k, *found
