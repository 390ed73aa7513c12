"""Flags of a dataclass by tyro: comma lists, negative values, and errors of one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from itertools import dropwhile, pairwise, takewhile
from typing import Any, TypeVar, get_args

import tyro

from decision_s4.envs.errors import UserError, closest

T = TypeVar("T")
_registry = tyro.constructors.ConstructorRegistry()


def read_flags(form: type[T], args: Sequence[str], **options: Any) -> tuple[T, list[str]]:
    """An instance of the dataclass `form` from `args`, and the arguments that it does not know.

    tyro's box of an error becomes the one line of a UserError; `--help` prints and exits.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                form, args=args, return_unknown_args=True, registry=_registry, **options
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_first_paragraph(box.getvalue()))


def _first_paragraph(box: str) -> str:
    """The text under a box's title, be it drawn in colour, in plain characters or in ASCII."""

    def is_rule(line: str) -> bool:
        return not line.strip(" │|╭╮╰╯+─-")

    lines = re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:]
    paragraph = takewhile(lambda line: not is_rule(line), dropwhile(is_rule, lines))
    text = " ".join(" ".join(line.strip(" │|") for line in paragraph).split())
    return text.removeprefix("Error parsing ").partition(" Got errors:")[0].replace(" .", ".")


def hyphened(name: str) -> str:
    """A field's name as its flag spells it, without the dashes in front."""
    return name.replace("_", "-")


def join_negative_values(argv: Sequence[str]) -> list[str]:
    """`--target-returns -200,-100` as one word, or `-200,-100` would be taken for a flag."""
    joined: list[str] = []
    for word in argv:
        if re.match(r"-[\d.]", word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def last_value(argv: Sequence[str], name: str) -> str | None:
    """The value of the last `--name VALUE` or `--name=VALUE`; None without one."""
    value = None
    for word, after in pairwise([*argv, "--"]):
        flag, equals, attached = word.partition("=")
        if flag == f"--{name}" and (equals or not after.startswith("--")):
            value = attached if equals else after
    return value


def unknown_argument(unknown: Sequence[str], argv: Sequence[str], names: Sequence[str]) -> str:
    """The message about arguments of `argv` that no field of `names` takes."""
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if flag is not None:
        close = closest(flag.lstrip("-"), map(hyphened, names))
        return f"unknown flag {flag}; " + (f"did you mean '--{close}'?" if close else "see --help")
    near = next(word for word in argv if word.endswith(unknown[0]))
    return f"unexpected '{near}'; write --flag VALUE, a list as 1,2, a switch as --flag, --no-flag"


@_registry.primitive_rule
def _comma_list(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """tuple[X, ...] of int, float or str as one word: `3600,1800`; `none` is the empty one."""
    kind, *rest = get_args(info.type) or (None,)
    if info.type_origin is not tuple or rest != [...] or kind not in (int, float, str):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{kind.__name__.upper()},{kind.__name__.upper()}",
        instance_from_str=lambda words: (
            () if words[0] in ("", "none") else tuple(map(kind, words[0].split(",")))
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value)) or "none"],
    )
