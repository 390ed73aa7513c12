"""almost_linear in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.gated_scan.order import pack, unpack
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    u: Tensor, decay: Tensor, weight: Tensor, linear: int, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `almost_linear`."""
    choice.check_compiled("almost_linear", state, library)
    layout = packing.chunks(1)
    if not layout.counts:
        return torch.zeros_like(u), state
    inputs, before = pack(u, state[:, None], layout)
    settings = linear, layout.counts, torch.is_grad_enabled()
    z, after = CompiledRanks.apply(*settings, inputs, decay, weight, before)
    z, after = unpack(z, after, state[:, None], layout, u.shape[1])
    return z, after[:, 0]


class CompiledRanks(torch.autograd.Function):
    """(linear units, counts, whether to keep, u (T', M), A (M,), W (M, M), z (E, 1, M))
    -> (z (T', M), final z) of T' steps of E episodes."""

    @staticmethod
    def forward(
        ctx: Any, linear: int, counts: tuple[int, ...], keep: bool, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, decay, weight, state = (x.contiguous() for x in inputs)
        keep = keep and any(ctx.needs_input_grad)
        compiled = choice.check_library("almost_linear", library)
        z, final, *kept = compiled.forward(u, decay, weight, state, linear, counts, keep)
        ctx.linear, ctx.counts = linear, counts
        ctx.save_for_backward(decay, weight, *kept)
        return z, final

    @staticmethod
    def backward(ctx: Any, d_z: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("almost_linear", "cpu")
        decay, weight, opened, before = ctx.saved_tensors
        given = opened, before, d_z.contiguous(), d_final.contiguous()
        compiled = choice.check_library("almost_linear", library)
        d_u, _, d_state = compiled.backward(decay, weight, ctx.linear, ctx.counts, *given)
        d_decay = (d_u * before[:, 0]).sum(0)
        return None, None, None, d_u, d_decay, d_u.T @ opened, d_state
