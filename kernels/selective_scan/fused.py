"""What the kernels for CUDA share: how a scan becomes a node of autograd, whoever computes it."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.selective_scan.arguments import Arguments

Given = TypeVar("Given", Tensor, Tensor | None)


class Inputs(NamedTuple):
    """What of `selective_scan`'s arguments a kernel reads beside the state."""

    u: Tensor
    delta: Tensor
    A: Tensor
    """As D and delta_bias in contiguous float32."""
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    start: Tensor | None
    """As bytes."""
    softplus: bool


class Kernels(NamedTuple):
    """An implementation, in four functions.

    `lay_out` of Inputs makes those of its own: tensors or None, softplus last; `inputs` makes them
    of such parts again. `forward` of (inputs, state, whether to keep) gives y, the final state and
    two to keep; `backward` of (inputs, those two, dy, dfinal) the gradients of u, delta, A, B, C,
    D, z, delta_bias, state.
    """

    inputs: Callable[..., Any]
    lay_out: Callable[[Inputs], Any]
    forward: Callable[..., tuple]
    backward: Callable[..., tuple]


def scan(kernels: Kernels, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """See `selective_scan`."""
    a = arguments
    given = a.u, a.delta, a.A, a.B, a.C, a.D, a.z, a.delta_bias, a.state, a.start
    return FusedScan.apply(kernels, torch.is_grad_enabled(), *given, a.delta_softplus)


class FusedScan(torch.autograd.Function):
    """The kernels, whether to keep what the backward pass needs, then every argument of
    `selective_scan`, in order, `delta_softplus` last."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        keep: bool,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        state: Tensor,
        start: Tensor | None,
        softplus: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.types = [x if x is None else x.dtype for x in (u, delta, A, B, C, D, z, delta_bias)]
        A = laid_out(A, torch.float32)
        D, delta_bias = (laid_out(x, torch.float32) for x in (D, delta_bias))
        start = start if start is None else start.contiguous().view(torch.uint8)
        given = Inputs(u, delta, A, B, C, D, z, delta_bias, start, softplus)
        inputs = kernels.lay_out(given)
        keep = keep and any(ctx.needs_input_grad)
        y, final, *kept = kernels.forward(inputs, state.contiguous(), keep)
        ctx.save_for_backward(*inputs[:-1], *kept)
        ctx.kernels, ctx.softplus = kernels, softplus
        return _as(y, ctx.types[0]), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, ungated, states = ctx.saved_tensors
        inputs = ctx.kernels.inputs(*inputs, ctx.softplus)
        given = ungated, states, laid_out(dy, inputs.u.dtype), dfinal.contiguous()
        *gradients, dstate = ctx.kernels.backward(inputs, *given)
        pairs = zip(gradients, ctx.types, strict=True)
        return None, None, *(_as(x, kind) for x, kind in pairs), dstate, None, None


def laid_out(x: Given, kind: torch.dtype | None = None) -> Given:
    """Contiguous, of a type if one is given."""
    return x if x is None else _as(x, kind).contiguous()


def _as(x: Given, kind: torch.dtype | None) -> Given:
    return x if x is None or kind in (None, x.dtype) else x.to(kind)
