"""What probes open around a run of layers: rules, taps, held coefficients, functions' stand-ins.

One context variable tells the marks of ops.py what to do. Each function here opens a context within
the one that is open, or asks about it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from torch import Tensor

from decision_s4.agents.backbones.coefficients import Coefficients
from decision_s4.agents.backbones.rules import RULES, Rules
from decision_s4.envs.errors import UserError, nearest

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
class Context:
    rules: Rules = RULES["off"]
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    record: Coefficients | None = None
    replay: Iterator[Tensor] | None = None
    scope: str = ""
    instead: Instead | None = None


CURRENT: ContextVar[Context | None] = ContextVar("probe", default=None)
NOTHING = nullcontext()


def is_open() -> bool:
    """Whether a probe reads: then layers run in differentiable, unfused operations."""
    return CURRENT.get() is not None


def is_held() -> bool:
    """Whether layers run with coefficients of before: then they are affine."""
    context = CURRENT.get()
    return context is not None and context.replay is not None


def impl() -> Literal["torch"] | None:
    """What kernels run: for probes "torch", whose gradients come in batches and twice too; else
    None, the fastest."""
    return "torch" if is_open() else None


def has_stand_in() -> bool:
    """Whether functions are given by something else, which knows them within a range alone."""
    context = CURRENT.get()
    return context is not None and context.instead is not None


@contextmanager
def _opened(context: Context) -> Iterator[None]:
    token = CURRENT.set(context)
    try:
        yield
    finally:
        CURRENT.reset(token)


def _current() -> Context:
    return CURRENT.get() or Context()


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


@contextmanager
def holding() -> Iterator[Coefficients]:
    """Within it, the frozen rules; yields the coefficients as they are met."""
    record = Coefficients()
    with _opened(Context(RULES["frozen"], record=record)):
        yield record


def held(record: Coefficients) -> AbstractContextManager[None]:
    """Within it, the layer that `record` was made by is the same linear map, at any input."""
    return _opened(Context(RULES["frozen"], replay=iter(record.values)))


def scope(name: str, index: int) -> AbstractContextManager[None]:
    """Within it, names of taps begin with `name.index.`."""
    context = CURRENT.get()
    if context is None:
        return NOTHING
    return _opened(replace(context, scope=f"{context.scope}{name}.{index}."))
