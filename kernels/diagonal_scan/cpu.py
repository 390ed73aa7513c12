"""diagonal_scan in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

import functools
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside, plain
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(u: Tensor, a: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """See `diagonal_scan`."""
    choice.check_compiled("diagonal_scan", u, library, choice.COMPLEX)
    kind = functools.reduce(torch.promote_types, (u.dtype, a.dtype, state.dtype))
    return CompiledScan.apply(packing.marks, u.to(kind), a.to(kind), state.to(kind))


class CompiledScan(torch.autograd.Function):
    """(marks (B, T), u (B, T, P), a (P,), state (B, P)) -> (x (B, T, P), final state)."""

    @staticmethod
    def forward(ctx: Any, marks: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        u, a, state = (plain(each) for each in inputs)
        compiled = choice.check_library("diagonal_scan", library)
        x, final = compiled.forward(u, a, state, marks.contiguous())
        ctx.save_for_backward(a, state, marks.contiguous(), x)
        return x, final

    @staticmethod
    def backward(ctx: Any, d_x: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("diagonal_scan", "cpu")
        compiled = choice.check_library("diagonal_scan", library)
        return None, *compiled.backward(*ctx.saved_tensors, plain(d_x), plain(d_final))
