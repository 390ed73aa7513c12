"""Checkpoints: safetensors and JSON, replaced atomically, checked by hash; nothing is unpickled.

checkpoints/<step>/ holds weights.safetensors, trainer.safetensors and state.json; `best` and `last`
link to such folders. A new one is written aside and renamed, then linked, and only then are older
ones removed: whenever the process dies, a complete checkpoint is left.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from decision_s4.agents.packing import Tree, pack, unpack
from decision_s4.envs.errors import UserError

FORMAT = 1
WEIGHTS, TRAINER, STATE = "weights.safetensors", "trainer.safetensors", "state.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; its tensors are on the CPU."""

    step: int
    weights: dict[str, torch.Tensor]
    trainer: Tree
    metadata: dict[str, Any]
    path: Path


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
    fresh = folder / f".tmp-{step}-{os.getpid()}"
    contents = _encode(step, weights, trainer, metadata)
    try:
        _write_folder(fresh, contents)
        _publish(fresh, folder / str(step))
        # `best` first: a death in between resumes before this step and finds it best again.
        for name in ["best", "last"] if best else ["last"]:
            _link(folder, name, str(step))
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(
            f"{folder}: cannot write checkpoint {step}: {error.strerror}; "
            "free some space there or choose another run folder"
        ) from None
    _remove_older(folder, step, keep)
    return folder / str(step)


def load(run_dir: Path, which: str = "last", with_trainer: bool = True) -> Checkpoint:
    """The checkpoint `last`, `best` or of a step such as `1000`, its hashes checked.

    Who only plays a policy needs no trainer.safetensors, which may be large, or left behind;
    `trainer` is None then. Where `last` is broken the newest complete checkpoint is taken and a
    warning logged. Raises UserError where there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    if which not in ("last", "best") and not which.isdecimal():
        raise UserError(f"checkpoint '{which}' is unknown; give last, best or a step of {folder}")
    if not folder.is_dir():
        raise UserError(f"{run_dir}: holds no checkpoints; give a run's folder that does")
    if which.isdecimal() and not (folder / which).is_dir():
        steps = ", ".join(path.name for path in reversed(_newest_first(folder))) or "none"
        raise UserError(f"{run_dir}: has no checkpoint of step {which}; it has {steps}")
    try:
        return _read(folder / which, with_trainer)
    except UserError as error:
        if which != "last":
            raise
        broken = error
    for path in _newest_first(folder):
        with contextlib.suppress(UserError):
            found = _read(path, with_trainer)
            log.warning("%s; taking step %d", broken, found.step)
            return found
    raise broken


def load_weights_into(
    module: nn.Module, weights: Mapping[str, torch.Tensor], where: str | Path
) -> None:
    """Copy `weights` into `module`: every name, shape and dtype must agree.

    Raises UserError that names the first tensor of each fault; the module is then untouched.
    """
    own = module.state_dict()
    both = [name for name in own if name in weights]
    faults = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [n for n in both if own[n].shape != weights[n].shape],
        "of another dtype": [n for n in both if own[n].dtype != weights[n].dtype],
    }
    named = [
        f"{len(names)} {fault} (first: {_describe(names[0], own, weights)})"
        for fault, names in faults.items()
        if names
    ]
    if named:
        raise UserError(f"{where}: weights of another model: {', '.join(named)}; check its config")
    module.load_state_dict(dict(weights))


def _describe(name: str, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    if name not in own or name not in found:
        return name
    here, there = own[name], found[name]
    shapes = f"{tuple(there.shape)} {there.dtype}, not {tuple(here.shape)} {here.dtype}"
    return f"{name} is {shapes}".replace("torch.", "")


def _encode(step: int, weights: Mapping, trainer: Tree, metadata: Mapping) -> dict[str, bytes]:
    """The bytes of each file; state.json holds the hashes of the others and of itself."""
    tensors: dict[str, torch.Tensor] = {}
    packed = pack(trainer, tensors, "trainer")
    files = {WEIGHTS: _tensor_bytes(weights), TRAINER: _tensor_bytes(tensors)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    body = {"format": FORMAT, "step": step, "metadata": pack(metadata, {}, "metadata")}
    body |= {"sha256_of": hashes, "trainer": packed}
    text = json.dumps(body | {"sha256": _hash_of(body)}, indent=1, allow_nan=False)
    return files | {STATE: text.encode()}


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    contiguous = torch.contiguous_format
    copies = {n: t.detach().cpu().clone(memory_format=contiguous) for n, t in tensors.items()}
    return safetensors.torch.save(copies)


def _hash_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in contents.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make names in `folder` survive a power cut too, on file systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(fresh: Path, path: Path) -> None:
    """Give `fresh` its name; a checkpoint of that step steps aside, where `load` still finds it."""
    if path.exists():
        path.rename(_aside(path))
    fresh.rename(path)
    _sync(path.parent)


def _aside(path: Path) -> Path:
    aside = path.with_name(f".old-{path.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def _link(folder: Path, name: str, target: str) -> None:
    temporary = folder / f".tmp-{name}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(folder / name)
    _sync(folder)


def _remove_older(folder: Path, step: int, keep: int) -> None:
    """Remove all but the `keep` newest up to `step`, `best`, and what dead processes left."""
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    kept = {str(s) for s in [s for s in steps if s <= step][-max(keep, 1) :]}
    if (folder / "best").is_symlink():
        kept.add((folder / "best").readlink().name)
    with contextlib.suppress(OSError):
        for name in {str(s) for s in steps} - kept:
            (folder / name).rename(_aside(folder / name))
        for path in [*folder.glob(".old-*"), *folder.glob(".tmp-*")]:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)


def _newest_first(folder: Path) -> list[Path]:
    found = [(re.fullmatch(r"(?:\.old-)?(\d+)(?:-\d+)?", p.name), p) for p in folder.glob("*")]
    steps = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(steps, reverse=True)]


def _read(path: Path, with_trainer: bool) -> Checkpoint:
    """Read and check one folder; UserError, whatever is wrong with it."""
    real = path.resolve()  # a link may move on while its files are read
    try:
        state = json.loads((real / STATE).read_bytes())
        if state.pop("sha256") != _hash_of(state) or state["format"] != FORMAT:
            raise ValueError(f"{STATE} is damaged or of another version")
        hashes = state["sha256_of"]
        weights = _read_tensors(real / WEIGHTS, hashes[WEIGHTS])
        trainer, metadata = None, unpack(state["metadata"], {})
        if with_trainer:
            tensors = _read_tensors(real / TRAINER, hashes[TRAINER])
            trainer = unpack(state["trainer"], tensors)
        return Checkpoint(state["step"], weights, trainer, metadata, real)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"damaged: {error}"
    raise UserError(f"{path}: no complete checkpoint ({reason}); choose last, best or a step")


def _read_tensors(path: Path, expected: str) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path.name} is not what was written")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None
