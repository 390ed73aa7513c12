"""selective_scan in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.selective_scan.arguments import Arguments

library = library_beside(__file__)


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    if arguments.u.device.type != "cpu":
        raise ValueError(
            f"selective_scan: impl 'cpu' needs tensors on the CPU, not {arguments.u.device}"
        )
    choice.check_library("selective_scan", library)
    inputs = *arguments.core(), arguments.state, arguments.start
    y, state = CompiledScan.apply(torch.is_grad_enabled(), *inputs)
    return arguments.finish(y), state


class CompiledScan(torch.autograd.Function):
    """(whether to keep, u, Δ, A, B, C, state, start) -> (y, final state), the recurrence alone."""

    @staticmethod
    def forward(ctx: Any, keep: bool, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        given = [x if x is None else x.contiguous() for x in inputs]
        compiled = choice.check_library("selective_scan", library)
        y, final, before = compiled.forward(*given, keep and any(ctx.needs_input_grad))
        ctx.save_for_backward(*given, before)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, _, start, before = ctx.saved_tensors
        kept = u, delta, A, B, C, start, before
        compiled = choice.check_library("selective_scan", library)
        return None, *compiled.backward(*kept, dy.contiguous(), dstate.contiguous()), None
