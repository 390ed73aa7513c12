"""selective_scan fused for CUDA: softplus, recurrence, skip, gate and resets in one pass.

The backward pass recomputes states from those kept between tiles of TIME steps. Sums over channels
are taken within a tile of channels, then over tiles: no atomics, so that the same input gives the
same gradients to the bit.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from decision_s4.kernels.choice import check
from decision_s4.kernels.selective_scan import fused
from decision_s4.kernels.selective_scan import triton_kernels as kernels
from decision_s4.kernels.selective_scan.arguments import Arguments
from decision_s4.kernels.selective_scan.misfit import misfit

TIME = 16  # steps of a tile: N / 16 states kept an element, a tile of each tensor in registers
CHANNELS = 16  # of a program; more, in more warps that wait for each other, took twice as long
REGISTERS = 128  # of a thread in the forward pass: twice as many programs run at once
STATES, WARPS = 4, 16  # at least so many states a thread, at most so many warps a program


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    check("selective_scan", arguments.u.device, misfit(arguments.dtype, arguments.A.shape[1]))
    with torch.cuda.device_of(arguments.u):
        return fused.scan(fused.Kernels(Inputs, _lay_out, forward, backward), arguments)


class Inputs(NamedTuple):
    """Contiguous; A, D and bias in float32, start as bytes."""

    u: Tensor
    delta: Tensor
    A: Tensor
    table: Tensor
    """B and C, see `pack`."""
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    start: Tensor | None
    softplus: bool

    def pointers(self) -> list[Tensor]:
        """u, delta, A, table, D, z, bias, start; u where there is none, which is not read."""
        return [self.u if x is None else x for x in self[:8]]

    def flags(self) -> dict[str, Any]:
        """What the kernels are specialised for."""
        return {
            "HAS_D": self.D is not None,
            "HAS_Z": self.z is not None,
            "HAS_BIAS": self.delta_bias is not None,
            "SOFTPLUS": self.softplus,
            "CUT": self.start is not None,
            "N": self.A.shape[1],
            "TIME": TIME,
        }


def _lay_out(given: fused.Inputs) -> Inputs:
    u, delta, A, B, C, D, z, delta_bias, start, softplus = given
    u, delta, B, C = (fused.laid_out(x) for x in (u, delta, B, C))
    table, z = pack(B, C), fused.laid_out(z)
    return Inputs(u, delta, A, table, D, z, delta_bias, start, softplus)


def pack(B: Tensor, C: Tensor) -> Tensor:
    """B and C (B, T, N) in the order in which the kernels read them, pairs of float32."""
    rows, steps, size = B.shape
    tiles = triton.cdiv(steps, TIME)
    states = max(4, triton.next_power_of_2(size))
    table = torch.empty(rows, tiles, states, TIME, device=B.device, dtype=torch.int64)
    kernels.pack[(rows, tiles)](B, C, table, steps, tiles, N=size, STATES=states, TIME=TIME)
    return table


def _launch(
    kernel: Any, inputs: Inputs, *others: Any, registers: int | None = None, **flags: Any
) -> None:
    rows, steps, channels = inputs.u.shape
    states = inputs.table.shape[2]
    each = max(STATES, states * CHANNELS // (32 * WARPS))
    kernel[(triton.cdiv(channels, CHANNELS), rows)](
        *inputs.pointers(), *others, steps, channels,
        **inputs.flags(), **flags, GROUPS=states // each, PER=each, CHANNELS=CHANNELS,
        num_warps=max(1, states // each * CHANNELS // 32), maxnreg=registers,
    )  # fmt: skip


def forward(inputs: Inputs, state: Tensor, keep: bool) -> tuple[Tensor, ...]:
    """y, final state, and to keep: y before the gate, states before all tiles (B, tiles, N, D)."""
    rows, steps, channels = inputs.u.shape
    y, final = torch.empty_like(inputs.u), torch.empty_like(state)
    ungated, states = y, final
    if keep:
        ungated = y if inputs.z is None else torch.empty_like(y)
        states = state.new_empty(rows, triton.cdiv(steps, TIME), inputs.A.shape[1], channels)
    given = state, y, ungated, states, final
    _launch(kernels.forward, inputs, *given, registers=REGISTERS, KEEP=keep)
    return y, final, ungated, states


def backward(
    inputs: Inputs, ungated: Tensor, states: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, state."""
    rows, steps, channels = inputs.u.shape
    size = inputs.A.shape[1]
    du, ddelta = torch.empty_like(inputs.u), torch.empty_like(inputs.delta)
    dA, dstate = torch.empty_like(dfinal), torch.empty_like(dfinal)
    dD, dbias = dfinal.new_empty(2, rows, channels).unbind()
    dz = du if inputs.z is None else torch.empty_like(inputs.z)
    parts = dfinal.new_empty(2, triton.cdiv(channels, CHANNELS), rows, size, steps)
    given = ungated, states, dy, dfinal, du, ddelta, dA, *parts.unbind(), dD, dz, dbias, dstate
    _launch(kernels.backward, inputs, *given)
    dB, dC = parts.sum(1).transpose(2, 3).unbind()
    return (
        du,
        ddelta,
        dA.sum(0),
        dB,
        dC,
        None if inputs.D is None else dD.sum(0),
        None if inputs.z is None else dz,
        None if inputs.delta_bias is None else dbias.sum(0),
        dstate,
    )
