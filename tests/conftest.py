"""Shared fixtures: where the real datasets lie, programs that are no package, one thread."""

import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import decision_s4

torch.set_num_threads(1)
ROOT = Path(decision_s4.__file__).parent


@pytest.fixture(scope="module")
def program_of() -> Callable[[str], ModuleType]:
    """Loads a program such as "benchmarks/pixels.py", which finds its neighbours as ever."""
    before, path = set(sys.modules), list(sys.path)
    yield _load
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(_FOLDERS):
            del sys.modules[name]


_FOLDERS = tuple(f"{ROOT / folder}{os.sep}" for folder in ("benchmarks", "docs"))


def _load(file: str) -> ModuleType:
    path = ROOT / file
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    if path.stem not in sys.modules:
        spec = util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[path.stem]


@pytest.fixture(scope="session")
def datasets_root() -> Path:
    """Minari data root with real trajectories; users may not have it, then the test is skipped."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    root = Path(os.environ.get("MINARI_DATASETS_PATH", beside))
    if not (root / "gym").is_dir():
        pytest.skip(f"no datasets under {root}: set MINARI_DATASETS_PATH to a Minari data root")
    return root
