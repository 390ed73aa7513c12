"""Where a run lies: runs/<algo>/<dataset or env>/<seed>-<time>/; its text files, atomically."""

import os
import re
import time
from pathlib import Path

from decision_s4.envs.errors import UserError

CONFIG_FILE = "config.yaml"  # the settings


def default_run_dir(algo: str, data: str, seed: int, root: Path = Path("runs")) -> Path:
    """A fresh folder's name, by the local time in seconds; `data` is a dataset's or env's id."""
    return root / _safe(algo) / _safe(data) / f"{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


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
