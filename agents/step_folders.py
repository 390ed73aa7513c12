"""Folders named by steps, written whole or not at all: whenever the process dies, one is left.

A new one is written aside and renamed, then linked, and only then are older ones removed.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(folder: Path, step: int, contents: Mapping[str, bytes], links: Sequence[str]) -> None:
    """Write folder/<step>/ with files of these contents, then link to it, in order.

    Raises OSError where that is impossible.
    """
    fresh = folder / f".tmp-{step}-{os.getpid()}"
    try:
        _write_whole(fresh, contents)
        _publish(fresh, folder / str(step))
        for name in links:
            _link(folder, name, str(step))
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def newest_first(folder: Path) -> list[Path]:
    """All folders of steps, those that stepped aside too."""
    found = [(re.fullmatch(r"(?:\.old-)?(\d+)(?:-\d+)?", p.name), p) for p in folder.glob("*")]
    steps = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(steps, reverse=True)]


def remove_older(folder: Path, step: int, keep: int) -> None:
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


def _write_whole(folder: Path, contents: Mapping[str, bytes]) -> None:
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
