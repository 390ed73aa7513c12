"""gated_scan in C++ (cpu.cpp), with its gradients. Compiled once a machine.

Only what hangs on the step before runs there: the input's part of the gates, and the gradients of
the weights, are one matrix product each of all steps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.kernels import choice
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.gated_scan.order import pack, unpack
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`."""
    choice.check_compiled("gated_scan", state, library)
    layout = packing.chunks(1)
    if not layout.counts:
        return state.new_zeros(*x.shape[:2], state.shape[2]), state
    inputs, before = pack(x, state, layout)
    of_inputs, weight, bias_of_inputs, bias = network.all_weights[0]
    gates = F.linear(inputs, of_inputs, bias_of_inputs)
    name, keep = network.mode.lower(), torch.is_grad_enabled()
    hidden, after = CompiledRanks.apply(name, layout.counts, keep, gates, weight, bias, before)
    return unpack(hidden, after, state, layout, x.shape[1])


class CompiledRanks(torch.autograd.Function):
    """(network, counts, whether to keep, gates (M, G·H), U (G·H, H), b (G·H,), state (E, parts, H))
    -> (h (M, H), final state)."""

    @staticmethod
    def forward(
        ctx: Any, name: str, counts: tuple[int, ...], keep: bool, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates, weight, bias, state = (x.contiguous() for x in inputs)
        keep = keep and any(ctx.needs_input_grad)
        run = getattr(library(), name)
        hidden, final, *kept = run(gates, weight, bias, state, counts, keep)
        ctx.name, ctx.counts = name, counts
        ctx.save_for_backward(weight, *kept)
        return hidden, final

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("gated_scan", "cpu")
        weight, before, kept = ctx.saved_tensors
        run = getattr(library(), f"{ctx.name}_backward")
        given = before, kept, d_hidden.contiguous(), d_final.contiguous()
        d_product, d_gates, d_state = run(weight, ctx.counts, *given)
        return None, None, None, d_gates, d_product.T @ before, d_product.sum(0), d_state
