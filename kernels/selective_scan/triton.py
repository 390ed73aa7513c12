"""selective_scan fused for CUDA: softplus, recurrence, skip, gate and resets in one pass.

The backward pass recomputes states from those kept before each tile of TIME steps. Sums over
channels are taken within a tile of channels, then over tiles: no atomics, so that the same input
gives the same gradients to the bit.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.selective_scan import triton_kernels as kernels
from decision_s4.kernels.selective_scan.arguments import Arguments

MAX_STATES = 32  # they are unrolled
TIME = 16  # steps of a tile: keeps N / 16 states an element, and a tile of each tensor in registers


class Config(NamedTuple):
    """How a kernel is launched."""

    channels: int
    """Of a tile."""
    warps: int


CONFIGS = {
    "forward": (Config(32, 1), Config(64, 1), Config(64, 2), Config(128, 4)),
    "backward": (Config(32, 1), Config(64, 1)),  # more warps would wait for one another's sums
}


def scan(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    check(arguments)
    a = arguments
    given = a.u, a.delta, a.A, a.B, a.C, a.D, a.z, a.delta_bias, a.state, a.start
    return FusedScan.apply(*given, a.delta_softplus)


def check(arguments: Arguments) -> None:
    """Raises ValueError for what the kernels do not take."""
    device, size = arguments.u.device.type, arguments.A.shape[1]
    if device != "cuda" and not interpreted():
        raise ValueError(f"selective_scan: impl 'triton' needs tensors on CUDA, not {device}")
    if arguments.dtype != torch.float32:
        raise ValueError(
            "selective_scan: impl 'triton' needs bfloat16 or float32, not float64; use 'torch'"
        )
    if size > MAX_STATES:
        raise ValueError(
            f"selective_scan: impl 'triton' takes N up to {MAX_STATES}, not {size}; use 'torch'"
        )


def interpreted() -> bool:
    """Whether Triton runs its programs in Python, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class FusedScan(torch.autograd.Function):
    """Every argument of `selective_scan`, in order, `delta_softplus` last."""

    @staticmethod
    def forward(
        ctx: Any, u, delta, A, B, C, D, z, delta_bias, state, start, softplus
    ) -> tuple[Tensor, Tensor]:
        ctx.types = [x if x is None else x.dtype for x in (u, delta, A, B, C, D, z, delta_bias)]
        u, delta, B, C, z = (x if x is None else x.contiguous() for x in (u, delta, B, C, z))
        D, delta_bias = (x if x is None else x.float().contiguous() for x in (D, delta_bias))
        A = A.float().t().contiguous()
        start = start if start is None else start.contiguous().view(torch.uint8)
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, start, softplus)
        y, final, before = forward(inputs, state, any(ctx.needs_input_grad))
        ctx.save_for_backward(*inputs[:-1], before)
        ctx.softplus = softplus
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, before = ctx.saved_tensors
        inputs = Inputs(*inputs, ctx.softplus)
        *gradients, dstate = backward(inputs, before, dy.contiguous(), dfinal)
        pairs = zip(gradients, ctx.types, strict=True)
        return *(x if x is None else x.to(kind) for x, kind in pairs), dstate, None, None


class Inputs(NamedTuple):
    """Contiguous; A as (N, D), D and bias in float32, start as bytes."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    start: Tensor | None
    softplus: bool

    def pointers(self) -> list[Tensor]:
        """u, delta, A, B, C, D, z, bias; u where there is none, which is not read."""
        return [self.u if x is None else x for x in self[:8]]

    def flags(self) -> dict[str, Any]:
        """What the kernels are specialised for."""
        return {
            "HAS_D": self.D is not None,
            "HAS_Z": self.z is not None,
            "HAS_BIAS": self.delta_bias is not None,
            "SOFTPLUS": self.softplus,
            "CUT": self.start is not None,
            "N": self.A.shape[0],
            "STATES": triton.next_power_of_2(self.A.shape[0]),
            "TIME": TIME,
        }


def forward(inputs: Inputs, state: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, final state, and the state before each tile (B, tiles, N, D), empty unless kept."""
    rows, steps, channels = inputs.u.shape
    size, tiles = inputs.A.shape[0], triton.cdiv(steps, TIME)
    state = state.transpose(1, 2).contiguous()  # channels last, as all else
    y, final = torch.empty_like(inputs.u), torch.empty_like(state)
    before = state.new_empty((rows, tiles, size, channels) if keep else 1)
    start = inputs.u if inputs.start is None else inputs.start

    def launch(config: Config) -> None:
        kernels.forward[(rows, triton.cdiv(channels, config.channels))](
            *inputs.pointers(), state, start, y, final, before, steps, channels,
            **inputs.flags(), KEEP=keep, CHANNELS=config.channels, num_warps=config.warps,
        )  # fmt: skip

    launch(fastest(_key("forward", inputs), launch))
    return y, final.transpose(1, 2), before


def backward(
    inputs: Inputs, before: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, state."""
    rows, steps, channels = inputs.u.shape
    size = inputs.A.shape[0]
    du, ddelta = torch.empty_like(inputs.u), torch.empty_like(inputs.delta)
    dA, dstate = dfinal.new_empty(2, rows, size, channels).unbind()
    dD, dbias = dfinal.new_empty(2, rows, channels).unbind()
    dz = du if inputs.z is None else torch.empty_like(inputs.z)
    start = inputs.u if inputs.start is None else inputs.start

    def launch(config: Config) -> Tensor:
        blocks = triton.cdiv(channels, config.channels)
        parts = dfinal.new_empty(2, blocks, rows, size, steps)
        dA.zero_(), dstate.copy_(dfinal.transpose(1, 2))  # the kernel goes on from these
        kernels.backward[(rows, blocks)](
            *inputs.pointers(), start, before, dy,
            du, ddelta, dA, *parts.unbind(), dD, dz, dbias, dstate, steps, channels,
            **inputs.flags(), CHANNELS=config.channels, num_warps=config.warps,
        )  # fmt: skip
        return parts.sum(1).transpose(2, 3)

    dB, dC = launch(fastest(_key("backward", inputs), launch)).unbind()
    return (
        du,
        ddelta,
        dA.sum(0).t(),
        dB,
        dC,
        None if inputs.D is None else dD.sum(0),
        None if inputs.z is None else dz,
        None if inputs.delta_bias is None else dbias.sum(0),
        dstate.transpose(1, 2),
    )


class Key(NamedTuple):
    """What the fastest configuration is looked up by."""

    kernel: str
    device: torch.device
    dtype: torch.dtype
    rows: int
    channels: int
    flags: tuple[tuple[str, Any], ...]


def _key(kernel: str, inputs: Inputs) -> Key:
    rows, _, channels = inputs.u.shape
    flags = tuple(inputs.flags().items())
    return Key(kernel, inputs.u.device, inputs.u.dtype, rows, channels, flags)


CHOSEN: dict[Key, Config] = {}


def fastest(key: Key, launch: Callable[[Config], object]) -> Config:
    """The configuration that ran fastest at the first call with this key."""
    if interpreted():
        return CONFIGS[key.kernel][0]
    if key not in CHOSEN:
        CHOSEN[key] = min(
            CONFIGS[key.kernel], key=lambda config: _seconds(functools.partial(launch, config))
        )
    return CHOSEN[key]


def _seconds(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=5, rep=20)
