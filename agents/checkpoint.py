"""Checkpoints: safetensors and JSON, replaced atomically, checked by hash; nothing is unpickled.

checkpoints/<step>/ holds weights.safetensors, trainer.safetensors and state.json; `best` and `last`
link to such folders.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from decision_s4.agents import step_folders
from decision_s4.agents.checkpoint_files import Checkpoint, encode, read
from decision_s4.agents.step_folders import newest_first, remove_older
from decision_s4.agents.tree_json import Tree
from decision_s4.envs.errors import UserError

log = logging.getLogger(__name__)


def save(
    run_dir: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    trainer: Tree,
    metadata: dict[str, Any],
    best: bool,
    keep: int = 1,
) -> Path:
    """Write checkpoints/<step>/, link `last` (and for a best one `best`) to it, return the folder.

    `weights` is a module's state_dict; `trainer` any tree of dict, list, tuple, int, float, bool,
    str, None and tensors (optimiser, scheduler, generators, sampler); `metadata` plain values.
    Afterwards the `keep` newest checkpoints and `best` remain. Raises UserError where the folder
    cannot be written, TypeError for a value that no checkpoint can hold.
    """
    folder = Path(run_dir) / "checkpoints"
    contents = encode(step, weights, trainer, metadata)
    # `best` first: a death in between resumes before this step and finds it best again.
    links = ["best", "last"] if best else ["last"]
    try:
        step_folders.write(folder, step, contents, links)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write checkpoint {step}: {error.strerror}; "
            "free some space there or choose another run folder"
        ) from None
    remove_older(folder, step, keep)
    return folder / str(step)


def any_in(run_dir: Path) -> bool:
    """Whether a run has written a checkpoint, be it damaged since; half a first one is none."""
    folder = Path(run_dir) / "checkpoints"
    return (folder / "last").is_symlink() or bool(newest_first(folder))


def load(run_dir: Path, which: str = "last", with_trainer: bool = True) -> Checkpoint:
    """The checkpoint `last`, `best` or of a step such as `1000`, its hashes checked.

    Who only plays a policy needs no trainer.safetensors, which may be large, or left behind;
    `trainer` is None then. Where `last` is broken the newest complete checkpoint is taken and a
    warning logged. Raises UserError where there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    _check_which(folder, which)
    try:
        return read(folder / which, with_trainer)
    except UserError as broken:
        found = _newest_complete(folder, with_trainer) if which == "last" else None
        if found is None:
            raise
        log.warning("%s; taking step %d", broken, found.step)
        return found


def _check_which(folder: Path, which: str) -> None:
    if which not in ("last", "best") and not which.isdecimal():
        raise UserError(f"checkpoint '{which}' is unknown; give last, best or a step of {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder.parent}: holds no checkpoints; give a run's folder that does")
    if which.isdecimal() and not (folder / which).is_dir():
        steps = ", ".join(path.name for path in reversed(newest_first(folder))) or "none"
        raise UserError(f"{folder.parent}: has no checkpoint of step {which}; it has {steps}")


def _newest_complete(folder: Path, with_trainer: bool) -> Checkpoint | None:
    for path in newest_first(folder):
        with contextlib.suppress(UserError):
            return read(path, with_trainer)
    return None
