"""What a layer marks so that every probe reads it: nonlinearities, products, coefficients, tensors.

A layer is linear in its values once its coefficients (gates, time steps, attention weights,
activations' ratios, norms' scales) are held. It says which those are by calling `act`, `norm`,
`gate`, `coefficient` and `tap`; `rules` says what a gradient does with them, so that plain autograd
yields attention, relevance or gradients of any layer. Without an open context each is the function
that it names, bit by bit, at the cost of one look-up.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.envs.errors import UserError, nearest

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
Handler = Callable[[Tensor], Tensor | None]


class Asked(NamedTuple):
    """A function f(x) of FUNCTIONS, and where in a layer it stands."""

    kind: str
    degree: int = 1
    """Of x, as a polynomial in what the layer reads."""
    beside: int = 0
    """Degree of what f(x) is multiplied with."""


Instead = Callable[[Asked, Tensor], Tensor]


@dataclass(frozen=True)
class Rules:
    """What gradients do at each kind of mark. The value of a layer never changes."""

    activation: Literal["gradient", "ratio"] = "gradient"
    """ratio: f(x) = x · (f(x) / x), the ratio held: the identity rule of relevance propagation."""
    norm: Literal["gradient", "scale"] = "gradient"
    """scale: the standard deviation is held (Ali et al., arXiv 2202.07304)."""
    product: Literal["gradient", "held", "half"] = "gradient"
    """Of signal and gate. held: all to the signal; half: half to each (arXiv 2406.07592)."""
    coefficient: Literal["gradient", "held", "shared"] = "gradient"
    """Of factors such as queries and keys. shared: a product of n gives each of them 1 / n."""
    rate: Literal["gradient", "held"] = "gradient"
    """Of what is no factor of a product: time steps, decays, sigmoid gates."""


RULES = {
    "off": Rules(),
    "frozen": Rules("ratio", "scale", "held", "held", "held"),
    "lrp": Rules("ratio", "scale", "half", "held", "held"),
    "attnlrp": Rules("ratio", "scale", "half", "shared", "held"),
    "selection": Rules("ratio", "scale", "half", "shared", "gradient"),
}
"""frozen: the layer as a linear operator. lrp: MambaLRP (arXiv 2406.07592). attnlrp: AttnLRP's
products (arXiv 2402.05602). selection: as attnlrp, time steps and decays by their gradients."""


class Coefficients:
    """What a layer held while it ran, in order; kept, it makes the layer the same linear map."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self._named: dict[str, list[Tensor]] = {}

    def add(self, name: str | None, value: Tensor) -> None:
        """The next one; a name may come once, or once a step."""
        self.values.append(value)
        if name is not None:
            self._named.setdefault(name, []).append(value)

    def get(self, name: str) -> Tensor | None:
        """(B, T, …) what was marked by that name; None if nothing was."""
        return self[name] if name in self._named else None

    def __getitem__(self, name: str) -> Tensor:
        """(B, T, …) what was marked by that name. Raises KeyError if nothing was."""
        found = self._named[name]
        return found[0] if len(found) == 1 else torch.stack(found, 1)

    def within(self, scope: str) -> "Coefficients":
        """Those marked within `scope`, by the names they have there."""
        inner = Coefficients()
        for name, values in self._named.items():
            if name.startswith(scope):
                inner._named[name.removeprefix(scope)] = values
        return inner

    def replaced(self, name: str, value: Tensor) -> "Coefficients":
        """As this, with `value` for what was marked by that name, once."""
        (old,), changed = self._named[name], Coefficients()
        changed.values = [value if x is old else x for x in self.values]
        return changed


@dataclass(frozen=True)
class _Context:
    rules: Rules = RULES["off"]
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    record: Coefficients | None = None
    replay: Iterator[Tensor] | None = None
    scope: str = ""
    instead: Instead | None = None


_CONTEXT: ContextVar[_Context | None] = ContextVar("probe", default=None)
_NOTHING = nullcontext()


def is_open() -> bool:
    """Whether a probe reads: then layers run in differentiable, unfused operations."""
    return _CONTEXT.get() is not None


def is_held() -> bool:
    """Whether layers run with coefficients of before: then they are affine."""
    context = _CONTEXT.get()
    return context is not None and context.replay is not None


def impl() -> Literal["torch"] | None:
    """What kernels run: for probes "torch", whose gradients come in batches and twice too; else
    None, the fastest."""
    return "torch" if is_open() else None


@contextmanager
def _opened(context: _Context) -> Iterator[None]:
    token = _CONTEXT.set(context)
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def _current() -> _Context:
    return _CONTEXT.get() or _Context()


def rules(chosen: str | Rules) -> AbstractContextManager[None]:
    """Within it, gradients follow these rules, by name (RULES) or made for the purpose.

    Raises:
        UserError: for an unknown name.
    """
    if isinstance(chosen, str):
        if chosen not in RULES:
            raise UserError(f"rules '{chosen}' are unknown{nearest(chosen, RULES)}")
        chosen = RULES[chosen]
    return _opened(replace(_current(), rules=chosen))


def taps(handlers: Mapping[str, Handler]) -> AbstractContextManager[None]:
    """Within it, each tapped tensor of a name in `handlers` is passed to its handler.

    What the handler returns takes the tensor's place; None leaves it. Names of a stack's layers are
    `blocks.0.…`; see docs/probes.md.
    """
    context = _current()
    return _opened(replace(context, handlers={**context.handlers, **handlers}))


def functions(instead: Instead) -> AbstractContextManager[None]:
    """Within it, `instead` gives the value of each function that a layer asks for."""
    return _opened(replace(_current(), instead=instead))


def has_stand_in() -> bool:
    """Whether functions are given by something else, which knows them within a range alone."""
    context = _CONTEXT.get()
    return context is not None and context.instead is not None


def function(asked: Asked, x: Tensor) -> Tensor:
    """f(x), or what stands in for it."""
    context = _CONTEXT.get()
    if context is None or context.instead is None:
        return FUNCTIONS[asked.kind](x)
    return context.instead(asked, x)


@contextmanager
def holding() -> Iterator[Coefficients]:
    """Within it, the frozen rules; yields the coefficients as they are met."""
    record = Coefficients()
    with _opened(_Context(RULES["frozen"], record=record)):
        yield record


def held(record: Coefficients) -> AbstractContextManager[None]:
    """Within it, the layer that `record` was made by is the same linear map, at any input."""
    return _opened(_Context(RULES["frozen"], replay=iter(record.values)))


def scope(name: str, index: int) -> AbstractContextManager[None]:
    """Within it, names of taps begin with `name.index.`."""
    context = _CONTEXT.get()
    if context is None:
        return _NOTHING
    return _opened(replace(context, scope=f"{context.scope}{name}.{index}."))


def tap(name: str, x: Tensor) -> Tensor:
    """x, which a probe may read or replace."""
    context = _CONTEXT.get()
    if context is None or not context.handlers:
        return x
    handler = context.handlers.get(context.scope + name)
    new = None if handler is None else handler(x)
    return x if new is None else new


def _hold(context: _Context, name: str | None, compute: Callable[[], Tensor]) -> Tensor:
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
    context = _CONTEXT.get()
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
    context = _CONTEXT.get()
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
    context = _CONTEXT.get()
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
    context = _CONTEXT.get()
    if context is None:
        return x
    rule = context.rules.coefficient if factors else context.rules.rate
    if rule == "held":
        return _hold(context, name, lambda: x)
    return _share(x, factors) if rule == "shared" else x


def value(x: Tensor, factors: int) -> Tensor:
    """What is weighed: x, one of `factors` factors of a product."""
    context = _CONTEXT.get()
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
