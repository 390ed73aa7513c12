"""A dataset's name to Trajectories: Minari or D4RL, local or downloaded, converted once.

load("hopper-mixed")                              the small set that comes with the project
load("gym/hopper/medium-v0")                      a Minari id
load("hopper-medium-v2")                          a D4RL id
load("my/minari/folder"), load("my/file.hdf5")    a path to either
load("gym/hopper/medium-v0,gym/hopper/expert-v0") several as one
"""

import atexit
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium import spaces

from decision_s4.envs.dataset_sources import Source, expanded, locate
from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import DatasetInfo, Episode, Trajectories
from decision_s4.envs.trajectory_cache import open_trajectories, write_trajectories

FORMAT = 1  # of the converted folders; another number converts anew
MUST_AGREE = ("observation_space", "action_space", "env_id", "env_kwargs")

log = logging.getLogger(__name__)


def load(names: str | Path, cache_dir: str | Path | None = None) -> Trajectories:
    """Trajectories of the dataset `names`, or of several joined by commas, memory-mapped.

    The first load checks and converts the data into `cache_dir` (default: $DECISION_S4_CACHE,
    else ~/.cache/decision_s4); later loads open that at once, unless the source has changed.
    Raises UserError naming the dataset, the place and the fix.
    """
    names, cache = str(names), _cache_folder(cache_dir)
    try:
        sources = [locate(name.strip(), cache / "d4rl") for name in names.split(",")]
        folder = cache / "trajectories" / _key(sources)
    except OSError as error:
        raise UserError(f"dataset '{names}' cannot be read ({error}); check the path") from error
    if folder.exists():
        try:
            return open_trajectories(folder, names)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("dataset '%s': converting again, %s is damaged (%s)", names, folder, error)
            shutil.rmtree(folder)
    _convert(sources, folder, names)
    return open_trajectories(folder, names)


def _cache_folder(cache_dir: str | Path | None) -> Path:
    default = os.environ.get("DECISION_S4_CACHE") or "~/.cache/decision_s4"
    folder = expanded(cache_dir or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="decision_s4-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        log.warning("cannot write %s (%s): converting to %s this once", folder, error, temporary)
        return temporary
    return folder


def _key(sources: list[Source]) -> str:
    """Name of the converted folder: changes with any source's path, sizes and times."""
    stamps = [FORMAT, *(_stamp(source.path) for source in sources)]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    label = re.sub(r"\W+", "-", "+".join(source.name for source in sources))
    return f"{label.strip('-')[:60]}-{digest[:16]}"


def _stamp(path: Path) -> list:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [str(path.resolve()), [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]


def _convert(sources: list[Source], folder: Path, names: str) -> None:
    log.info("dataset '%s': converting to %s", names, folder)
    try:
        write_trajectories(folder, *_read(sources))
    except OSError as error:
        raise UserError(
            f"dataset '{names}': cannot write {folder} ({error}); "
            "make room there, or set DECISION_S4_CACHE to another folder"
        ) from error


def _read(sources: list[Source]) -> tuple[DatasetInfo, Iterator[Episode]]:
    """Description and episodes of all sources, one after the other."""
    infos, episodes = zip(*(s.read(s.path, s.name) for s in sources), strict=True)
    lead = next((info for info in infos if info.env_id is not None), infos[0])
    for info in infos:
        _check_agreement(lead, info)
    known = all(info.final_observation_known for info in infos)
    name = ",".join(info.name for info in infos)
    whole = replace(lead, name=name, final_observation_known=known)
    return whole, itertools.chain.from_iterable(episodes)


def _check_agreement(first: DatasetInfo, other: DatasetInfo) -> None:
    """Raise UserError for sets of two environments; a file that names none takes the other's."""
    fields = MUST_AGREE if other.env_id is not None else MUST_AGREE[:2]
    for field in fields:
        ours, theirs = getattr(first, field), getattr(other, field)
        if not _agree(ours, theirs):
            raise UserError(
                f"datasets '{first.name}' and '{other.name}' differ in {field} "
                f"({ours} and {theirs}); combine sets of one environment"
            )


def _agree(ours: Any, theirs: Any) -> bool:
    """Whether two are the same; Boxes of floats may differ in bounds and precision.

    Some files do not tell them: they are inferred from what was logged.
    """
    if isinstance(ours, spaces.Box) and isinstance(theirs, spaces.Box):
        floats = {space.dtype.kind for space in (ours, theirs)} == {"f"}
        return ours == theirs or (floats and ours.shape == theirs.shape)
    return ours == theirs
