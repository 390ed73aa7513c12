"""Layers of two kinds in turn: several linear-time ones, then one of full attention.

As Jamba (arXiv 2403.19887) and Samba (arXiv 2406.07522) mix state-space layers with attention.
"""

from dataclasses import asdict, dataclass
from typing import Any

from decision_s4.agents.backbones.base import Family, Mixer, family_of, make_options, register
from decision_s4.envs.errors import UserError

PARTS = ("linear", "full")


@dataclass(frozen=True)
class HybridOptions:
    """Options of `hybrid`; linear_NAME=value and full_NAME=value set those of the two kinds."""

    linear: str = "s4d"
    """Backbone of most layers."""
    full: str = "transformer"
    """Backbone of every (ratio + 1)-th layer, or of the last where the stack has fewer."""
    ratio: int = 3
    """Linear layers for each full one."""


@dataclass(frozen=True)
class ReadHybridOptions(HybridOptions):
    """HybridOptions with those of the two kinds, read."""

    linear_options: Any = None
    """The Options of the linear layers, made from linear_NAME=value."""
    full_options: Any = None
    """The Options of the full layers, made from full_NAME=value."""


@register("hybrid")
class Hybrid(Family):
    """A stack whose layer i is full if (i + 1) % (ratio + 1) == 0; at least one layer is."""

    Options = HybridOptions

    @classmethod
    def read_options(cls, name: str, given: dict[str, Any]) -> ReadHybridOptions:
        own: dict[str, Any] = {}
        theirs: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for key, value in given.items():
            part, _, option = key.partition("_")
            if part in PARTS and option:
                theirs[part][option] = value
            else:
                own[key] = value
        options = super().read_options(name, own)
        if options.ratio < 1:
            raise UserError(f"ratio {options.ratio} must be at least 1 linear layer for each full")
        made = {f"{p}_options": _part_options(options, p, theirs[p]) for p in PARTS}
        return ReadHybridOptions(**asdict(options), **made)

    @classmethod
    def layers(cls, d_model: int, options: ReadHybridOptions, n_layers: int) -> list[Mixer]:
        full = [(i + 1) % (options.ratio + 1) == 0 for i in range(n_layers)]
        full[-1] |= not any(full)
        linear = family_of(options.linear).layers(
            d_model, options.linear_options, full.count(False)
        )
        others = family_of(options.full).layers(d_model, options.full_options, full.count(True))
        return [others.pop(0) if is_full else linear.pop(0) for is_full in full]


def _part_options(options: HybridOptions, part: str, given: dict[str, Any]) -> Any:
    name = getattr(options, part)
    try:
        family = family_of(name)
    except UserError as error:
        raise UserError(f"{part}: {error}") from None
    if issubclass(family, Hybrid):
        raise UserError(f"{part} '{name}' is a mixture itself; name the backbone of one layer")
    return make_options(name, given)
