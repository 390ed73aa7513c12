"""gated_scan as a loop over ranks, the k-th steps of all episodes at once, gradient by hand.

What does not hang on the loop is done for all steps together, before or after it: going back,
only dh, and dc of an LSTM, pass from step to step, so that a step costs four to six operations.
Shapes: M valid steps of E episodes, H width, G gates (3 of a GRU, 4 of an LSTM).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.kernels import choice
from decision_s4.kernels.gated_scan.order import pack, shrink, unpack
from decision_s4.kernels.packing import Packing


def scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`."""
    layout = packing.chunks(1)
    if not layout.counts:
        return state.new_zeros(*x.shape[:2], state.shape[2]), state
    inputs, before = pack(x, state, layout)
    of_inputs, weight, bias_of_inputs, bias = network.all_weights[0]
    gates = F.linear(inputs, of_inputs, bias_of_inputs)
    run = LSTMRanks if isinstance(network, nn.LSTM) else GRURanks
    hidden, *after = run.apply(layout.counts, gates, weight, bias, *before.unbind(1))
    return unpack(hidden, torch.stack(after, dim=1), state, layout, x.shape[1])


class GRURanks(torch.autograd.Function):
    """(counts, gates (M, 3H), U (3H, H), b (3H,), h (E, H)) -> (h (M, H), final h (E, H))."""

    @staticmethod
    def forward(
        ctx: Any, counts: tuple[int, ...], gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor
    ) -> tuple[Tensor, ...]:
        width, turned = weight.shape[1], weight.T.contiguous()
        kept: list[tuple[Tensor, ...]] = []
        ended: list[Tensor] = []
        for gate in gates.split(counts):
            h = shrink(h, len(gate), ended)
            before = h
            recurrent = torch.addmm(bias, h, turned)
            rz = torch.add(gate[:, : 2 * width], recurrent[:, : 2 * width]).sigmoid_()
            inner = recurrent[:, 2 * width :]
            n = torch.addcmul(gate[:, 2 * width :], rz[:, :width], inner).tanh_()
            h = torch.lerp(n, h, rz[:, width:])
            kept.append((before, rz, n, inner))
        before, rz, n, inner = (torch.cat(each) for each in zip(*kept, strict=True))
        ctx.counts = counts
        ctx.save_for_backward(weight, before, rz, n, inner)
        hidden = torch.lerp(n, before, rz[:, width:])
        return hidden, torch.cat([h, *reversed(ended)])

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("gated_scan", "torch")
        weight, before, rz, n, inner = ctx.saved_tensors
        r, z = rz.chunk(2, dim=1)
        to_n = (1 - z) * (1 - n * n)
        to_gates = torch.stack(
            [to_n * inner * r * (1 - r), (before - n) * z * (1 - z), to_n * r], dim=1
        )
        of_gates: list[Tensor] = []
        of_h: list[Tensor] = []
        grown = d_final[:0]
        steps = [each.split(ctx.counts) for each in (d_hidden, to_gates, z)]
        for d_out, factor, keep in zip(*map(reversed, steps), strict=True):
            grown = _grow(grown, d_final, len(d_out)) + d_out
            d_gate = (grown[:, None] * factor).flatten(1)
            of_gates.append(d_gate)
            of_h.append(grown)
            grown = torch.addmm(grown * keep, d_gate, weight)
        d_recurrent, d_h = torch.cat(of_gates[::-1]), torch.cat(of_h[::-1])
        d_gates = torch.cat([d_recurrent[:, : 2 * n.shape[1]], d_h * to_n], dim=1)
        return None, d_gates, d_recurrent.T @ before, d_recurrent.sum(0), grown


class LSTMRanks(torch.autograd.Function):
    """(counts, gates (M, 4H), U (4H, H), b (4H,), h, c (E, H)) -> (h (M, H), final h, final c)."""

    @staticmethod
    def forward(
        ctx: Any,
        counts: tuple[int, ...],
        gates: Tensor,
        weight: Tensor,
        bias: Tensor,
        h: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, ...]:
        width, turned = weight.shape[1], weight.T.contiguous()
        kept: list[tuple[Tensor, ...]] = []
        ended_h: list[Tensor] = []
        ended_c: list[Tensor] = []
        for gate in (gates + bias).split(counts):
            h, c = shrink(h, len(gate), ended_h), shrink(c, len(gate), ended_c)
            gate = torch.addmm(gate, h, turned)
            g = gate[:, 2 * width : 3 * width].tanh()
            i, f, _, o = gate.sigmoid_().split(width, dim=1)
            new = torch.addcmul(f * c, i, g)
            bent = new.tanh()
            kept.append((gate, g, bent, h, c))
            h, c = o * bent, new
        gate, g, bent, before, cell = (torch.cat(each) for each in zip(*kept, strict=True))
        ctx.counts = counts
        ctx.save_for_backward(weight, gate, g, bent, before, cell)
        hidden = gate[:, 3 * width :] * bent
        return hidden, torch.cat([h, *reversed(ended_h)]), torch.cat([c, *reversed(ended_c)])

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, *d_final: Tensor) -> tuple[Tensor | None, ...]:
        choice.refuse_second_derivatives("gated_scan", "torch")
        weight, gate, g, bent, before, cell = ctx.saved_tensors
        i, f, _, o = gate.chunk(4, dim=1)
        through_c = torch.stack([g * i * (1 - i), cell * f * (1 - f), i * (1 - g * g)], dim=1)
        through_h, to_c = bent * o * (1 - o), o * (1 - bent * bent)
        of_gates: list[Tensor] = []
        d_h, d_c = d_final[0][:0], d_final[1][:0]
        steps = [each.split(ctx.counts) for each in (d_hidden, through_c, through_h, to_c, f)]
        for d_out, of_c, of_h, out_to_c, keep in zip(*map(reversed, steps), strict=True):
            d_h = _grow(d_h, d_final[0], len(d_out)) + d_out
            d_c = torch.addcmul(_grow(d_c, d_final[1], len(d_out)), d_h, out_to_c)
            d_gate = torch.cat([(d_c[:, None] * of_c).flatten(1), d_h * of_h], dim=1)
            of_gates.append(d_gate)
            d_h, d_c = d_gate @ weight, d_c * keep
        d_gates = torch.cat(of_gates[::-1])
        return None, d_gates, d_gates.T @ before, d_gates.sum(0), d_h, d_c


def _grow(part: Tensor, final: Tensor, count: int) -> Tensor:
    """Going back, the episodes that end here join, with the gradient of their final state."""
    return torch.cat([part, final[len(part) : count]]) if len(part) < count else part
