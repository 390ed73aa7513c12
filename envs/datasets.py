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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import minari
from gymnasium import spaces

import decision_s4
from decision_s4.envs.d4rl_download import D4RL_URLS, fetch_d4rl, verify
from decision_s4.envs.d4rl_files import read_d4rl
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.minari_files import METADATA, read_minari
from decision_s4.envs.trajectories import DatasetInfo, Episode, Trajectories
from decision_s4.envs.trajectory_cache import open_trajectories, write_trajectories

DEFAULT_DATASET = "hopper-mixed"
EMBEDDED = Path(decision_s4.__file__).parent / "data"
FORMAT = 1  # of the converted folders; another number converts anew
MINARI_ID = re.compile(r"([-\w]+/)+[-\w]+-v\d+")
MUST_AGREE = ("observation_space", "action_space", "env_id", "env_kwargs")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where one dataset lies and what reads it."""

    name: str
    path: Path
    read: Callable[[Path, str], tuple[DatasetInfo, Iterator[Episode]]]


def load(names: str, cache_dir: str | Path | None = None) -> Trajectories:
    """Trajectories of the dataset `names`, or of several joined by commas, memory-mapped.

    The first load checks and converts the data into `cache_dir` (default: $DECISION_S4_CACHE,
    else ~/.cache/decision_s4); later loads open that at once, unless the source has changed.
    Raises UserError naming the dataset, the place and the fix.
    """
    cache = _cache_folder(cache_dir)
    try:
        sources = [_locate(name.strip(), cache) for name in names.split(",")]
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


def local_datasets() -> list[str]:
    """Minari ids under the data root ($MINARI_DATASETS_PATH, else ~/.minari/datasets), sorted."""
    root, found = minari_root(), []
    for folder, below, _ in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]  # half-written ones hide
        if "data" in below:
            below.clear()
            found.append(Path(folder).relative_to(root).as_posix())
    return sorted(found)


def minari_root() -> Path:
    """Minari's data root: $MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    return _expanded(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets")


def _locate(name: str, cache: Path) -> Source:
    if not name:
        raise UserError("a dataset name is empty; write one name, or several joined by commas")
    if name == DEFAULT_DATASET:
        return Source(name, EMBEDDED / name / "data", read_minari)
    for folder in (minari_root() / name, _expanded(name)):
        for data in (folder / "data", folder):
            if (data / METADATA).is_file():
                return Source(name, data, read_minari)
    if name in D4RL_URLS:
        return Source(name, fetch_d4rl(name, cache / "d4rl"), _read_verified)
    return _locate_path(name) or _download_minari(name)


def _locate_path(name: str) -> Source | None:
    path = _expanded(name)
    if path.is_file():
        return Source(name, path, read_d4rl)
    for folder in (minari_root() / name, path):
        if folder.is_dir():
            raise UserError(
                f"dataset '{name}': the folder {folder} holds neither data/{METADATA} nor "
                f"{METADATA}; name a whole Minari dataset or a D4RL .hdf5 file"
            )
    if path.suffix in (".hdf5", ".h5") or name.startswith((".", "/", "~")):
        raise UserError(f"dataset '{name}': no such file or folder; check the path")
    return None


def _download_minari(name: str) -> Source:
    root, known = minari_root(), [DEFAULT_DATASET, *local_datasets(), *D4RL_URLS]
    if not MINARI_ID.fullmatch(name):
        raise UserError(f"unknown dataset '{name}'{nearest(name, known)}")
    logging.disable(logging.WARNING)  # Hugging Face's client would log each attempt, twice
    try:
        minari.download_dataset(name)
    except Exception as error:  # each of Minari's remotes fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"dataset '{name}' is not under {root} and cannot be downloaded ({reason}); connect to "
            "the network, or set MINARI_DATASETS_PATH to the folder that holds it"
            f"{nearest(name, known)}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return Source(name, root / name / "data", read_minari)


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or a user without a home: not found later on
        return Path(path)


def _cache_folder(cache_dir: str | Path | None) -> Path:
    default = os.environ.get("DECISION_S4_CACHE") or "~/.cache/decision_s4"
    folder = _expanded(cache_dir or default)
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


def _read_verified(path: Path, name: str) -> tuple[DatasetInfo, Iterator[Episode]]:
    verify(path, name)
    return read_d4rl(path, name)


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
