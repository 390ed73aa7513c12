"""What a layer marks so that every probe reads it: nonlinearities, products, coefficients, tensors.

A layer is linear in its values once its coefficients (gates, time steps, attention weights,
activations' ratios, norms' scales) are held. It says which those are by calling `act`, `norm`,
`gate`, `coefficient` and `tap`; `rules` says what a gradient does with them, so that plain autograd
yields attention, relevance or gradients of any layer. Without an open context each is the function
that it names, bit by bit, at the cost of one look-up.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones.coefficients import Coefficients
from decision_s4.agents.backbones.probe_context import (
    CURRENT,
    Asked,
    Context,
    Handler,
    functions,
    has_stand_in,
    held,
    holding,
    impl,
    is_held,
    is_open,
    rules,
    scope,
    taps,
)
from decision_s4.agents.backbones.rules import RULES, Rules

__all__ = [  # the marks, and what probes open around them
    "ACTIVATIONS",
    "FUNCTIONS",
    "RULES",
    "Activation",
    "Asked",
    "Coefficients",
    "Handler",
    "LayerNorm",
    "RMSNorm",
    "Rules",
    "act",
    "coefficient",
    "function",
    "functions",
    "gate",
    "has_stand_in",
    "held",
    "holding",
    "impl",
    "is_held",
    "is_open",
    "norm",
    "rules",
    "scope",
    "tap",
    "taps",
    "value",
]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ACTIVATIONS,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
}
"""Of one number: all in a layer that is no polynomial, where the layer says so (see `Mixer`)."""


def function(asked: Asked, x: Tensor) -> Tensor:
    """f(x), or what stands in for it."""
    context = CURRENT.get()
    if context is None or context.instead is None:
        return FUNCTIONS[asked.kind](x)
    return context.instead(asked, x)


def tap(name: str, x: Tensor) -> Tensor:
    """x, which a probe may read or replace."""
    context = CURRENT.get()
    if context is None or not context.handlers:
        return x
    handler = context.handlers.get(context.scope + name)
    new = None if handler is None else handler(x)
    return x if new is None else new


def _hold(context: Context, name: str | None, compute: Callable[[], Tensor]) -> Tensor:
    if context.replay is not None:
        return next(context.replay)
    with torch.no_grad():
        value = compute().detach()
    if context.record is not None:
        context.record.add(name if name is None else context.scope + name, value)
    return value


def _share(x: Tensor, factors: int) -> Tensor:
    """x, with 1 / factors of its gradient."""
    return x / factors + (x * (1 - 1 / factors)).detach()


def act(x: Tensor, kind: str, name: str | None = None) -> Tensor:
    """An activation f with f(0) = 0, of ACTIVATIONS; `name` is its held ratio's, for probes."""
    context = CURRENT.get()
    if context is None:
        return ACTIVATIONS[kind](x)
    if context.rules.activation == "gradient":
        return function(Asked(kind), x)
    return x * _hold(context, name, lambda: _ratio(x, kind))


def _ratio(x: Tensor, kind: str) -> Tensor:
    """f(x) / x."""
    if kind == "gelu":
        return torch.special.ndtr(x)
    if kind == "relu":
        return (x > 0).to(x.dtype)
    if kind == "silu":
        return torch.sigmoid(x)
    return torch.where(x == 0, 1, torch.tanh(x) / x)


def norm(x: Tensor, module: nn.LayerNorm | nn.RMSNorm, name: str | None = None) -> Tensor:
    """`module` of x, over its last dimension; `name` is its held scale's, for probes."""
    context = CURRENT.get()
    if context is None or (context.rules.norm == "gradient" and context.instead is None):
        return _norm(x, module)
    bias = getattr(module, "bias", None)
    centred = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    square = centred.square().mean(-1, keepdim=True) + eps
    if context.rules.norm == "gradient":
        scale = function(Asked("rsqrt", degree=2, beside=1), square)
    else:
        scale = _hold(context, name, square.rsqrt)
    y = centred * scale * module.weight
    return y if bias is None else y + bias


def _norm(x: Tensor, module: nn.LayerNorm | nn.RMSNorm) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    return F.rms_norm(x, module.normalized_shape, module.weight, module.eps)


def gate(signal: Tensor, by: Tensor, name: str | None = None) -> Tensor:
    """signal ⊙ by, where both are signals, as y and silu(z) are; `name` is that of a held `by`."""
    context = CURRENT.get()
    if context is None or context.rules.product == "gradient":
        return signal * by
    if context.rules.product == "held":
        return signal * _hold(context, name, lambda: by)
    return 0.5 * (signal * by.detach() + signal.detach() * by)


def coefficient(name: str, x: Tensor, factors: int = 0) -> Tensor:
    """What weighs values: held where the layer is taken for linear.

    Args:
        name: for probes; "step" is Δ.
        x: (B, T, …), or of one step in a layer that loops.
        factors: how many factors the product has that x is one of, values included; 0 for what
            is none: time steps, decays, sigmoid gates.
    """
    context = CURRENT.get()
    if context is None:
        return x
    rule = context.rules.coefficient if factors else context.rules.rate
    if rule == "held":
        return _hold(context, name, lambda: x)
    return _share(x, factors) if rule == "shared" else x


def value(x: Tensor, factors: int) -> Tensor:
    """What is weighed: x, one of `factors` factors of a product."""
    context = CURRENT.get()
    if context is None or context.rules.coefficient != "shared":
        return x
    return _share(x, factors)


class Activation(nn.Module):
    """`act` as a module."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return act(x, self.kind)


class LayerNorm(nn.LayerNorm):
    """torch's, marked."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self)


class RMSNorm(nn.RMSNorm):
    """torch's, marked."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self)
