"""The contract of every sequence layer, and the registry of their names.

Shapes: B rows, T steps, D model width. A state is a tree (tuples, dicts) of tensors, batch first,
float32 or wider whatever the autocast type, and is never written in place.
"""

import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones.ops import Coefficients
from decision_s4.envs.errors import UserError, nearest
from decision_s4.kernels.packing import Packing

State: TypeAlias = Any
Layout: TypeAlias = Literal["channels", "heads", "dense"]
F = TypeVar("F", bound="type[Family]")
LARGEST = 1e6  # of an option: horizons and windows beyond overflow, or no memory holds them
LIMITS = {
    **dict.fromkeys(("expand", "expand_k", "expand_v", "expansion"), 64),
    **dict.fromkeys(("d_state", "n_heads", "n_relu", "blocks", "d_conv", "order"), 4096),
    **dict.fromkeys(("rank", "gate_rank", "dt_rank"), 4096),
}
"""Of the options that multiply a layer's weights: beyond, no memory would hold them."""


def check_memory(d_model: int, n_layers: int) -> None:
    """Raise UserError where no training could hold one square matrix a layer: weights, gradients
    and two moments in float32."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    needed = 16 * n_layers * d_model**2 / 2**30
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if needed > there:
        raise UserError(
            f"d_model {d_model} with n_layers {n_layers} needs more than {needed:.0f} GiB of "
            f"memory and this machine has {there:.0f}; take narrower or fewer layers"
        )


class Family:
    """What a backbone's name stands for: its options, and the mixers of a stack's layers."""

    Options: ClassVar[type]
    """A frozen dataclass: the one place of the options' names and defaults."""

    @classmethod
    def read_options(cls, name: str, given: dict[str, Any]) -> Any:
        """An instance of `Options`. Raises UserError as `make_options` does."""
        fields = {field.name: field for field in dataclasses.fields(cls.Options)}
        for key, value in given.items():
            if key not in fields:
                raise UserError(f"backbone '{name}' has no option '{key}'{nearest(key, fields)}")
            default = fields[key].default
            if type(value) not in ({int, float} if type(default) is float else {type(default)}):
                wanted = type(default).__name__
                raise UserError(
                    f"backbone option {key} is {value!r}; it needs {wanted}, as {default!r}"
                )
            limit = LIMITS.get(key, LARGEST)
            if isinstance(value, int | float) and limit < abs(value) < math.inf:
                raise UserError(
                    f"backbone option {key} is {str(value)[:20]}; it goes to {limit:g}, "
                    f"try {default!r}"
                )
        return cls.Options(**given)

    @classmethod
    def layers(cls, d_model: int, options: Any, n_layers: int) -> "list[Mixer]":
        """The mixers of a stack, first layer first."""
        raise NotImplementedError


class Mixer(nn.Module, Family, ABC):
    """What mixes information over time in one layer: one file, one mixer.

    A subclass is made as `Mixer(d_model, options)`, `options` an instance of its `Options`.
    """

    recurrence_parameters: tuple[str, ...] = ()
    """Names of the parameters (poles, time steps, …) that want a smaller rate and no decay."""
    context: int | None = None
    """None: a recurrent state of fixed size. W: exactly the last W steps."""
    marked: ClassVar[bool] = False
    """Whether the layer is sums and products but for functions that it asks `ops` for, each of
    what the one before gave, so that polynomials can stand in for them (agents/polynomial.py)."""
    recordable: ClassVar[bool] = False
    """Whether all that `forward` reads of where episodes lie has a fixed shape (packing.py), so
    that a CUDA graph can hold it."""
    mixing: ClassVar[dict[str, Layout]] = {}
    """For probes: parts of `forward` that are linear in the values that it taps as PART.values and
    read at PART.mixed. "layer" is the widest, "scan" the recurrence alone. channels: no channel
    sees another; heads (B, T, H, V): one weight for all of a head; dense: all see all. Without
    "layer", that part is the whole layer, dense."""

    @classmethod
    def layers(cls, d_model: int, options: Any, n_layers: int) -> "list[Mixer]":
        return [cls(d_model, options) for _ in range(n_layers)]

    @abstractmethod
    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        """The state before any step, for `batch_size` rows."""

    @abstractmethod
    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        """All steps in parallel: x (B, T, D) -> (y (B, T, D), state after the last step)."""

    def can_be_recorded(self, device: torch.device) -> bool:
        """Whether a graph can hold `forward` there: `recordable`, or where a fused scan runs."""
        return self.recordable

    def constants(self) -> Any:
        """What `step` needs of the parameters alone. Compute it once to take many steps."""
        return None

    def closed_rows(
        self, part: str, coefficients: Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor | None:
        """For probes: (B, H, I, T) rows of a part at `steps` (I,), if an equation gives them faster
        than a backward pass a row. None where it does not."""
        return None

    def log_decays(self, coefficients: Coefficients) -> Tensor | None:
        """For probes: log |decay| a step of each mode (modes) or (D, modes), or, where it depends
        on the input, (B, T, …). None for a layer that does not decay by a rate."""
        return None

    @abstractmethod
    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        """One step: x (B, D) -> (y (B, D), new state). The same function as `forward`."""


BACKBONES: dict[str, type[Family]] = {}
"""Sequence layers by name; `make_backbone` stacks them."""
MEMORYLESS: dict[str, type[Family]] = {}
"""Layers that see one step alone, for control experiments; known to `make_backbone` too."""


def register(name: str, known: dict[str, type[Family]] = BACKBONES) -> Callable[[F], F]:
    """Class decorator: makes a mixer, or a family of them, known as `--backbone name`."""

    def add(family: F) -> F:
        known[name] = family
        return family

    return add


def family_of(name: str) -> type[Family]:
    """What `name` stands for. Raises UserError for an unknown one, naming the nearest."""
    known = BACKBONES | MEMORYLESS
    if name not in known:
        raise UserError(f"backbone '{name}' is unknown{nearest(name, known)}")
    return known[name]


def make_options(name: str, given: dict[str, Any]) -> Any:
    """The options of backbone `name`, from its defaults and those given.

    Raises:
        ValueError: for an unknown backbone or option, naming the nearest known one, or a value of
            another type than its default.
    """
    return family_of(name).read_options(name, given)


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """`d_state=32`, `init=lin`, … as a dict; values are read as YAML reads them, and 1e-3 as .001.

    Raises:
        UserError: for a pair without `=` or a value that YAML cannot read.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"backbone option '{pair}' has no value; write name=value")
        options[key.strip().replace("-", "_")] = _value(pair, value)
    return options


def _value(pair: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none, a number too long
        raise UserError(f"backbone option '{pair}' is malformed; write name=value") from None
    try:
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a text
    except ValueError:
        return value


def reset(state: State, start: Tensor, initial: State) -> State:
    """`initial` in the rows where `start` (B,) is True, `state` in the others."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(start.view(-1, *[1] * (old.ndim - 1)), new, old)

    return tree_map(choose, initial, state)
