"""Where a dataset lies by its name: with the project, under Minari's root, at a path, or online."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import minari

import decision_s4
from decision_s4.envs.d4rl_download import D4RL_URLS, fetch_d4rl, verify
from decision_s4.envs.d4rl_files import read_d4rl
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.minari_files import METADATA, read_minari
from decision_s4.envs.trajectories import DatasetInfo, Episode

DEFAULT_DATASET = "hopper-mixed"
EMBEDDED = Path(decision_s4.__file__).parent / "data"
MINARI_ID = re.compile(r"([-\w]+/)+[-\w]+-v\d+")


@dataclass(frozen=True)
class Source:
    """Where one dataset lies and what reads it."""

    name: str
    path: Path
    read: Callable[[Path, str], tuple[DatasetInfo, Iterator[Episode]]]


def locate(name: str, downloads: Path) -> Source:
    """The source of that name, downloaded where it is nowhere else; D4RL's, into `downloads`.

    Raises UserError naming what is near where there is none.
    """
    if not name:
        raise UserError("a dataset name is empty; write one name, or several joined by commas")
    if name == DEFAULT_DATASET:
        return Source(name, EMBEDDED / name / "data", read_minari)
    for folder in (minari_root() / name, expanded(name)):
        for data in (folder / "data", folder):
            if (data / METADATA).is_file():
                return Source(name, data, read_minari)
    if name in D4RL_URLS:
        return Source(name, fetch_d4rl(name, downloads), _read_verified)
    return _locate_path(name) or _download_minari(name)


def _locate_path(name: str) -> Source | None:
    path = expanded(name)
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
    return expanded(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets")


def expanded(path: str | Path) -> Path:
    """The path with ~ for a home; as it is where nobody of that name has one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or one without a home: not found later on
        return Path(path)


def _read_verified(path: Path, name: str) -> tuple[DatasetInfo, Iterator[Episode]]:
    verify(path, name)
    return read_d4rl(path, name)
