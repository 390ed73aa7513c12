"""lti_scan in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

import functools
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside, plain
from decision_s4.kernels.lti_scan.system import System
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(u: Tensor, system: System, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """See `lti_scan`."""
    choice.check_compiled("lti_scan", u, library)
    kind = functools.reduce(torch.promote_types, (u.dtype, system.dtype, state.dtype))
    fields = [z.to(kind.to_complex()) for z in system if z is not None]
    keep = torch.is_grad_enabled()
    return CompiledScan.apply(keep, packing.marks, u.to(kind), state.to(kind), *fields)


class CompiledScan(torch.autograd.Function):
    """(whether to keep, marks (B, T), u, state, fields of the system) -> (y, final state)."""

    @staticmethod
    def forward(ctx: Any, keep: bool, marks: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, state, *fields = (plain(each) for each in inputs)
        marks, keep = marks.contiguous(), keep and any(ctx.needs_input_grad)
        compiled = choice.check_library("lti_scan", library)
        y, final, before = compiled.forward(u, fields, state, marks, keep)
        ctx.save_for_backward(marks, before, u, *fields)
        return y, final

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("lti_scan", "cpu")
        marks, before, u, *fields = ctx.saved_tensors
        compiled = choice.check_library("lti_scan", library)
        a, b, _, *low_rank = ctx.needs_input_grad[4:]
        every = any((a, b, *low_rank))
        given = u, fields, marks, before, plain(d_y), plain(d_final), every
        found = zip(compiled.backward(*given), ctx.needs_input_grad[2:], strict=True)
        return None, None, *(gradient if needed else None for gradient, needed in found)
