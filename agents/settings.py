"""The settings of a run of train.py: from its command line, and in its folder to go on with."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.config import load_config, parse, read_setting, save_config
from decision_s4.agents.flags import last_value
from decision_s4.agents.form import texts_of
from decision_s4.agents.kept import kept_of
from decision_s4.agents.options import RunOptions
from decision_s4.agents.run_dir import CONFIG_FILE
from decision_s4.envs.errors import UserError


def settings(argv: Sequence[str], description: str | None = None) -> RunOptions:
    """The settings that the command line asks for; a run's to go on from lie below its flags.

    `description` is what --help says first. Raises UserError for bad flags, and for those that
    would change what such a run keeps.
    """
    resume = last_value(argv, "resume")
    if resume not in (None, "None"):
        return _resumed(Path(resume), argv, description)
    config = parse(_config_class(argv), argv, description=description, notes=_notes(argv))
    kept = config.inherited()
    if not kept:
        return config
    config = parse(type(config), argv, defaults=kept, description=description)
    _check_kept("--from", kept, config, f"{vars(config)['from_run']}; leave it out")
    return config


def saved_settings(run_dir: Path) -> RunOptions:
    """Those that a run was trained with. Raises UserError for a folder that is no run's."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"--resume {run_dir}: no {CONFIG_FILE} there; give a run's folder")
    algo = read_setting(path, "algo")
    return load_config(algorithm_of(RunOptions.algo if algo is None else algo).config, path)


def save_settings(config: RunOptions, run_dir: Path) -> None:
    """Write them into the folder of the run."""
    save_config(portable(config), run_dir / CONFIG_FILE)


def portable(config: RunOptions) -> RunOptions:
    """The settings without the folder: it may move, and others may train with the same ones."""
    return dataclasses.replace(config, run_dir=None, resume=None)


def _config_class(argv: Sequence[str]) -> type[RunOptions]:
    """The dataclass of the algorithm that the flags, or else the file of --config, name."""
    algo, file = last_value(argv, "algo"), last_value(argv, "config")
    if algo is None and file is not None:
        algo = read_setting(Path(file), "algo")
    return algorithm_of(RunOptions.algo if algo is None else algo).config


def _notes(argv: Sequence[str]) -> dict[str, str]:
    """What --help says besides: the options of the backbone that the flags name."""
    name = last_value(argv, "backbone")
    if name not in BACKBONES | MEMORYLESS:
        return {}
    form = (BACKBONES | MEMORYLESS)[name].Options
    texts = texts_of(form)
    options = [
        f"{field.name}={field.default} ({texts.get(field.name, '').rstrip('.')})"
        for field in dataclasses.fields(form)
    ]
    return {"backbone_options": f"{name} takes " + ", ".join(options).replace(" ()", "") + "."}


def _resumed(run_dir: Path, argv: Sequence[str], description: str | None) -> RunOptions:
    """Those of a run to resume, changed by flags."""
    before = saved_settings(run_dir)
    config = parse(type(before), argv, defaults=vars(before), description=description)
    if config.run_dir:
        raise UserError(f"--run-dir {config.run_dir} with --resume: give only one of the two")
    _check_kept("--resume", kept_of(before), config, f"{run_dir / CONFIG_FILE}; start a new run")
    return config


def _check_kept(flag: str, kept: Mapping[str, Any], config: RunOptions, where: str) -> None:
    """Raise UserError for a setting that differs from the one kept: somebody has given it."""
    for name, old in sorted(kept.items()):
        if (new := getattr(config, name)) != old:
            raise UserError(f"{flag}: {name} is {old}, not {new}, in {where}")
