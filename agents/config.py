"""Settings from one frozen dataclass: its fields are the flags and the keys of a YAML file.

The string under a field is its help (a comment beside it is not).
Precedence, lowest first: the dataclass, `configs/<algo>.yaml`, `defaults`, `--config FILE`, flags.
Values of a YAML file and of the command line pass through the same parser.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
import yaml

import decision_s4
from decision_s4.agents.flags import (
    hyphened,
    join_negative_values,
    last_value,
    read_flags,
    unknown_argument,
)
from decision_s4.agents.form import answers_of, form_of, names_of
from decision_s4.agents.run_dir import replace_text
from decision_s4.envs.errors import UserError, nearest

T = TypeVar("T")
CONFIGS = Path(decision_s4.__file__).parent / "configs"
CONFIG_FLAG = (
    "config",
    Annotated[
        Path | None,
        tyro.conf.arg(
            help="YAML file of settings, below the flags.", metavar="PATH", help_behavior_hint=""
        ),
    ],
    dataclasses.field(default=None),
)


def parse(
    config_class: type[T],
    argv: Sequence[str],
    defaults: Mapping[str, object] | None = None,
    prog: str = "train.py",
    description: str | None = None,
    configs: Path = CONFIGS,
    notes: Mapping[str, str] | None = None,
) -> T:
    """The settings that the command line `argv` (without the program's name) asks for.

    `config_class` is a frozen dataclass; a field is a flag with hyphens (`eval_every` is
    `--eval-every`, a bool also `--no-...`, a tuple one comma list). `--config FILE` is added. If it
    has a field `algo`, the file `configs/<algo>.yaml` is read too. `defaults` (a resumed run's
    settings, say) lie between that file and `--config`. `--help` prints and exits with code 0,
    with `notes` added to what it says of the settings that they name.

    Raises UserError, one line, for an unknown or malformed flag, key, value, file or algorithm.
    """
    argv = join_negative_values(argv)
    path = last_value(argv, "config")
    above = dict(defaults or {})
    if path is not None:
        above |= read_yaml(config_class, Path(path))
    below = _algo_settings(config_class, last_value(argv, "algo"), above, configs)
    form = form_of(config_class, below | above, [CONFIG_FLAG], notes)
    options = {"prog": prog, "description": description or config_class.__doc__}
    answers, unknown = read_flags(form, argv, config=(tyro.conf.OmitArgPrefixes,), **options)
    if unknown:
        raise UserError(unknown_argument(unknown, argv, [*names_of(config_class), "config"]))
    found = answers_of(answers)
    return config_class(**{name: found[name] for name in names_of(config_class)})


def read_yaml(config_class: type, path: Path) -> dict[str, Any]:
    """Settings in the YAML file `path`, converted to the types of the fields of `config_class`.

    Raises UserError, naming the file, for one that cannot be read, an unknown key or a bad value.
    """
    values = _read_mapping(path)
    for name in sorted(values.keys() - set(names_of(config_class))):
        raise UserError(f"{path}: unknown setting '{name}'{nearest(name, names_of(config_class))}")
    return _converted(config_class, values, path)


def read_setting(path: Path, name: str) -> Any:
    """The value of `name` in a YAML file, unconverted; None where the file lacks it.

    Raises UserError, naming the file, for one that cannot be read.
    """
    return _read_mapping(path).get(name)


def save_config(config: Any, path: Path) -> None:
    """Write every setting as YAML, in the dataclass's order: tuples as lists, None as null."""
    values = {name: _plain(getattr(config, name)) for name in names_of(type(config))}
    replace_text(path, yaml.safe_dump(values, sort_keys=False))


def load_config(config_class: type[T], path: Path) -> T:
    """What `save_config` wrote; settings that the file lacks keep the dataclass's defaults."""
    return config_class(**read_yaml(config_class, path))


def describe_changes(before: T, after: T) -> list[str]:
    """One line a setting in which two configurations of one class differ: `lr: 0.1 -> 0.2`."""
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in names_of(type(before)))
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a YAML file of settings") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict | None):
        raise UserError(f"{path}: expected lines such as 'steps: 1000', not a {type(raw).__name__}")
    return {str(key).replace("-", "_"): value for key, value in (raw or {}).items()}


def _algo_settings(
    config_class: type, flag: str | None, above: Mapping[str, Any], configs: Path
) -> dict[str, Any]:
    """Settings of `configs/<algo>.yaml` for the algorithm that the layers above it name."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if "algo" not in fields:
        return {}
    algo = above.get("algo", fields["algo"].default) if flag is None else flag
    known = sorted(path.stem for path in configs.glob("*.yaml"))
    if algo not in known:
        raise UserError(f"--algo: unknown algorithm '{algo}'{nearest(str(algo), known)}")
    return read_yaml(config_class, configs / f"{algo}.yaml") | {"algo": algo}


def _converted(config_class: type, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """YAML values as the fields' types, by way of the command line's own parser."""
    hints = get_type_hints(config_class)  # a YAML key is the field, whatever its flag is called
    form: type[Any] = dataclasses.make_dataclass(
        "Settings", [(name, hints[name]) for name in values]
    )
    args = [f"--{hyphened(name)}={_text(value)}" for name, value in values.items()]
    try:
        answers, _ = read_flags(form, args, config=(tyro.conf.FlagConversionOff,))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    converted = {name: getattr(answers, name) for name in values}
    for name, value in values.items():
        if not _same(value, converted[name]):
            expected = f"expected {type(converted[name]).__name__}, not {value!r}"
            raise UserError(f"{path}: {name}: {expected}; write 'text' or [1, 2]")
    return converted


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _same(raw: Any, value: Any) -> bool:
    """Did parsing keep a YAML value? A text may name a number: YAML takes 1e-3 for a text."""
    if isinstance(raw, list):
        return isinstance(value, tuple) and len(raw) == len(value) and all(map(_same, raw, value))
    if isinstance(raw, str):
        return raw == value or not isinstance(value, str)
    return type(raw) in (type(value), int) and (raw == value or raw != raw)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
