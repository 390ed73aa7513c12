"""Where a run lies: runs/<algo>/<dataset or env>/<seed>-<time>/; its text files, atomically."""

import itertools
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from decision_s4.envs.errors import UserError

CONFIG_FILE = "config.yaml"  # the settings
EVAL_FILE = "eval.csv"  # the evaluations
LOCK_FILE = ".lock"


def default_run_dir(algo: str, data: str, seed: int, root: Path = Path("runs")) -> Path:
    """A fresh folder, by the local time in seconds; `data` is a dataset's or env's id.

    It is made here, so that no other run that begins in the same second takes it.
    """
    first = root / _safe(algo) / _safe(data) / f"{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count():
        path = first.with_name(f"{first.name}-{number}") if number else first
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # create_run_dir says why
        return path
    raise AssertionError("there is no last number")


def create_run_dir(path: Path) -> Path:
    """Make the folder `path` for a new run.

    Raises UserError where it cannot be written or already holds files.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; choose another run folder") from None
    if any(path.iterdir()):
        raise UserError(f"{path}: already holds a run; continue it with --resume {path}")
    return path


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Let no other process train in the folder meanwhile. Raises UserError where one does.

    The lock ends with the process that holds it, however that ends; workers may outlive it by a
    moment.
    """
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=3)
    except Timeout:
        raise UserError(
            f"{run_dir}: another process trains there; wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise UserError(f"{run_dir}: {error.strerror}; choose another run folder") from None
    try:
        yield
    finally:
        lock.release()


def replace_text(path: Path, text: str) -> None:
    """Write the file `path` whole or not at all. Raises UserError where that is impossible."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; write elsewhere") from None


def _safe(name: str) -> str:
    """`name` as one folder's name: 'mujoco/hopper/medium-v0' is 'mujoco-hopper-medium-v0'."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:120] or "unnamed"
