"""Settings that a checkpoint keeps: another value would be ignored, or make it another policy."""

from dataclasses import field, fields
from typing import Any, TypeVar

T = TypeVar("T")
MARK = "kept"


def kept(default: T) -> T:
    """The default of such a setting, which a resumed run cannot change."""
    marked: Any = field(default=default, metadata={MARK: True})
    return marked


def kept_of(config: Any) -> dict[str, Any]:
    """Those of a run's settings, by name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if MARK in f.metadata}
