"""short_conv in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `short_conv`."""
    choice.check_compiled("short_conv", x, library)
    bias = x.new_zeros(len(weight)) if bias is None else bias
    taps, past = weight.T.to(x.dtype), state.transpose(1, 2).to(x.dtype)
    y, final = CompiledConv.apply(packing.marks, x, taps, bias.to(x.dtype), past)
    return y, final.transpose(1, 2)


class CompiledConv(torch.autograd.Function):
    """(marks (B, T), x (B, T, D), weight (W, D), bias (D,), state (B, W − 1, D)) -> (y, final)."""

    @staticmethod
    def forward(ctx: Any, marks: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, bias, state = (each.contiguous() for each in inputs)
        ctx.save_for_backward(x, weight, state, marks)
        compiled = choice.check_library("short_conv", library)
        y, final = compiled.forward(x, weight, bias, state, marks)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("short_conv", "cpu")
        compiled = choice.check_library("short_conv", library)
        return None, *compiled.backward(*ctx.saved_tensors, dy.contiguous(), d_final.contiguous())
