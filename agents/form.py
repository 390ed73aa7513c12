"""A dataclass of settings as tyro reads it: a title over each group of flags, one help a flag."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import docstring_parser
import tyro

Flag = tuple[str, Any, Any]  # name, type, default or dataclasses.field


def form_of(
    config_class: type,
    values: Mapping[str, Any],
    extra: Sequence[Flag] = (),
    notes: Mapping[str, str] | None = None,
) -> type[Any]:
    """A dataclass for tyro: `config_class` with `values` for defaults, and the flags `extra`.

    `notes` are added to the help of the settings that they name. It is made anew and checks
    nothing: a rule in `__post_init__` judges the final settings only, never a layer of them. Where
    several classes name the settings, there is a field a class, so that `--help` shows what each
    named under a title.
    """
    flags = _flags(config_class, values, notes or {})
    groups = _groups(config_class)
    fields = [_titled(owner, [flags[name] for name in each]) for owner, each in groups.items()]
    if len(groups) == 1:
        fields = list(flags.values())
    return dataclasses.make_dataclass(config_class.__name__, [*fields, *extra], kw_only=True)


def names_of(config_class: type) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(config_class)]


def answers_of(form: Any) -> dict[str, Any]:
    """Every setting of an instance of a form, whatever group it stands in."""
    answers: dict[str, Any] = {}
    for name, value in vars(form).items():
        answers |= answers_of(value) if dataclasses.is_dataclass(value) else {name: value}
    return answers


def _groups(config_class: type) -> dict[type, list[str]]:
    """The settings by the class that names them first: another default changes no title."""
    groups: dict[type, list[str]] = {}
    for name in names_of(config_class):
        owner = [c for c in config_class.__mro__ if name in vars(c).get("__annotations__", ())][-1]
        groups.setdefault(owner, []).append(name)
    return groups


def _titled(owner: type, flags: Sequence[Flag]) -> Flag:
    """A field for the flags of `owner`: 'decay options' where its name is DecayOptions."""
    form = dataclasses.make_dataclass(
        owner.__name__, flags, kw_only=True, namespace={"__doc__": owner.__doc__}
    )
    name = re.sub(r"(Options|Config)$", "", owner.__name__)
    words = re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", name).split()
    title = " ".join(word if word.isupper() else word.lower() for word in words)
    required = any(setting.default is dataclasses.MISSING for *_, setting in flags)
    default: Any = dataclasses.field() if required else dataclasses.field(default_factory=form)
    return owner.__name__, Annotated[form, tyro.conf.arg(name=title)], default


def _flags(
    config_class: type, values: Mapping[str, Any], notes: Mapping[str, str]
) -> dict[str, Flag]:
    hints, kinds = get_type_hints(config_class, include_extras=True), get_type_hints(config_class)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    defaults |= values
    texts = texts_of(config_class)
    texts |= {name: f"{texts.get(name, '')} {note}" for name, note in notes.items()}
    return {
        name: (
            name,
            Annotated[hints[name], _appearance(kinds[name], defaults[name], texts.get(name))],
            dataclasses.field(default=defaults[name]),
        )
        for name in defaults
    }


def texts_of(config_class: type) -> dict[str, str]:
    """The strings under the fields, each as one line; none of a class without a file."""
    texts: dict[str, str] = {}
    for owner in filter(dataclasses.is_dataclass, reversed(config_class.__mro__)):
        try:
            found = docstring_parser.parse_from_object(owner).params
        except TypeError:
            continue
        for text in found:
            texts[text.arg_name] = " ".join((text.description or "").split())
    return texts


def _appearance(hint: Any, default: Any, text: str | None) -> Any:
    """A flag's help. What may be None says in its help what is then done: 'None' says nothing."""
    given = [kind for kind in get_args(hint) if kind is not type(None)]
    if default is not None or type(None) not in get_args(hint):
        return tyro.conf.arg(help=text)
    return tyro.conf.arg(help=text, help_behavior_hint="", metavar=given[0].__name__.upper())
