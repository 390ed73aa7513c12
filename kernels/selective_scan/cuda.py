"""selective_scan in CUDA C++: softplus, recurrence, skip, gate and resets in one pass, and back.

A block walks a row in tiles of steps, one barrier a tile. Some of its warps scan: a lane holds some
states of a channel or two, a few lanes share these. The others help: meanwhile they write what the
tile before gave, prepare the next and load the one after. The backward pass recomputes the states
of a tile in registers from those kept before each. dB and dC are summed over channels by the matrix
units, then over warps, then over blocks: no atomics, so that the same input gives the same
gradients to the bit.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels import nvrtc
from decision_s4.kernels.selective_scan import fused
from decision_s4.kernels.selective_scan.arguments import Arguments
from decision_s4.kernels.selective_scan.fused import Inputs
from decision_s4.kernels.selective_scan.misfit import misfit_of_cuda

PROVEN = True  # its tests have passed on a GPU, in the shapes below
KEPT = 8  # steps between states that are kept; 4 N / KEPT bytes an element
HERE = Path(__file__).parent
MACROS = "PER", "S", "G", "WARPS", "HELP", "TT", "RESIDENT", "HOLD_SCAN", "HOLD_HELP"
KERNEL = nvrtc.Kernel  # tests without a GPU put an emulation in its place


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    reason = misfit_of_cuda(arguments)
    if reason is not None and KERNEL is nvrtc.Kernel:
        raise ValueError(f"selective_scan: impl 'cuda' {reason}; use 'triton' or 'torch'")
    return fused.scan(fused.Kernels(Inputs, _lay_out, _forward, _backward), arguments)


class Shape(NamedTuple):
    """How a kernel is cut: states a lane, lanes that share channels, channels they share, warps of
    a block that scan and that help, steps a tile, how many warps a multiprocessor is to run, which
    bounds registers, and registers a thread of those that scan and that help, 0 for equal parts."""

    per: int
    lanes: int
    groups: int
    warps: int
    helpers: int
    time: int
    resident: int
    scan: int = 0
    help: int = 0

    @property
    def channels(self) -> int:
        """Of a block."""
        return self.warps * 32 // self.lanes * self.groups

    def bytes(self, name: str, low: bool) -> int:
        """Of `Tile` in the source of a kernel, for bfloat16 or not."""
        table = 2 * self.time * self.per * self.lanes * 4
        elements = self.time * self.channels
        if name == "forward" and low and self.lanes == 4:
            return 2 * (elements * 12 + 16 * self.time + table)
        if name == "forward":
            return 2 * (elements * (8 + 4 * self.lanes) + table)
        parts = self.warps * 2 * (self.time * self.per // 16) * 512
        return 2 * (elements * (16 + 8 * self.lanes) + parts + table) + 8 * self.channels


def _shape(name: str, states: int) -> Shape:
    """As timed for N = 16; forward, two channels share what lanes read of B and C."""
    if name == "backward":
        lanes = 1 if states <= 8 else 2 if states <= 16 else 4 if states <= 32 else 8
        return Shape(8, lanes, 1, 4, 4, KEPT, 16, 192, 64)
    if states > 32:
        return Shape(8, 8, 2, 8, 4, 16, 12)
    lanes = 2 if states <= 8 else 4 if states <= 16 else 8
    held = (144, 112) if lanes == 4 else ()
    return Shape(4, lanes, 1 if lanes == 2 else 2, 4, 4, 16, 16, *held)


def _lay_out(given: Inputs) -> Inputs:
    """All contiguous and aligned; u, delta, B, C and z of one type."""
    typed = {name: getattr(given, name) for name in ("u", "delta", "B", "C", "z")}
    low = all(x is None or x.dtype == torch.bfloat16 for x in typed.values())
    kind = torch.bfloat16 if low else torch.float32
    typed = {name: _aligned(fused.laid_out(x, kind)) for name, x in typed.items()}
    others = {name: _aligned(getattr(given, name)) for name in ("A", "D", "delta_bias")}
    return given._replace(**typed, **others)


def _aligned(x: fused.Given) -> fused.Given:
    """Where 16 bytes may be read at once: a contiguous view may begin anywhere."""
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


class Case(NamedTuple):
    """What a kernel is compiled for."""

    N: int
    LOW: int
    EVEN: int
    HAS_D: int
    HAS_Z: int
    HAS_BIAS: int
    SOFTPLUS: int
    KEEP: int


def _launch(name: str, inputs: Inputs, keep: bool, others: list) -> None:
    rows, steps, channels = inputs.u.shape
    case = Case(
        N=inputs.A.shape[1],
        LOW=inputs.u.dtype == torch.bfloat16,
        EVEN=channels % 2 == 0,
        HAS_D=inputs.D is not None,
        HAS_Z=inputs.z is not None,
        HAS_BIAS=inputs.delta_bias is not None,
        SOFTPLUS=inputs.softplus,
        KEEP=keep,
    )
    blocks = -(-channels // _shape(name, case.N).channels)
    with torch.cuda.device_of(inputs.u):
        run = _kernel(KERNEL, inputs.u.device.index, name, case)
        run((rows, blocks), [*inputs[:-1], *others], steps, channels)


@functools.cache
def _kernel(make: type, device: int | None, name: str, case: Case) -> Any:
    shape = _shape(name, case.N)
    sizes = dict(zip(MACROS, shape, strict=True), KEPT=KEPT)
    macros = {key: int(value) for key, value in case._asdict().items()} | sizes
    source = (HERE / "tile.cuh").read_text() + (HERE / f"{name}.cu").read_text()
    threads, low = 32 * (shape.warps + shape.helpers), bool(case.LOW)
    return make(source, name, macros, threads, shape.bytes(name, low))


def _forward(inputs: Inputs, state: Tensor, keep: bool) -> tuple:
    """y, final state, and to keep: y before the gate, (B, T / KEPT, D, N) states."""
    rows, steps, _ = inputs.u.shape
    y, final = torch.empty_like(inputs.u), torch.empty_like(state)
    ungated = states = None
    if keep:
        ungated = y if inputs.z is None else torch.empty_like(y)
        states = state.new_empty(rows, -(-steps // KEPT), *state.shape[1:])
    _launch("forward", inputs, keep, [_aligned(state), y, ungated, states, final])
    return y, final, ungated, states


def _backward(
    inputs: Inputs, ungated: Tensor, states: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, state."""
    rows, steps, channels = inputs.u.shape
    size = inputs.A.shape[1]
    du, ddelta = torch.empty_like(inputs.u), torch.empty_like(inputs.u)
    dz = None if inputs.z is None else torch.empty_like(inputs.u)
    dA, dstate = torch.empty_like(dfinal), torch.empty_like(dfinal)
    sums = dfinal.new_empty(2, rows, channels)  # of D and bias
    blocks = -(-channels // _shape("backward", size).channels)
    parts = dfinal.new_empty(2, blocks, rows, steps, size)  # of dB and dC
    made = [du, ddelta, dA, *parts.unbind(), sums[0], dz, sums[1], dstate]
    given = ungated, states, _aligned(dy), _aligned(dfinal)
    _launch("backward", inputs, False, [*given, *made])
    dB, dC = parts.sum(1).to(inputs.B.dtype).unbind()
    of_D, of_bias = sums.sum(1).unbind()
    dD = None if inputs.D is None else of_D
    dbias = None if inputs.delta_bias is None else of_bias
    return du, ddelta, dA.sum(0), dB, dC, dD, dz, dbias, dstate
