"""Shared fixtures: where the real datasets lie, and a thread count that keeps runs comparable."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def datasets_root() -> Path:
    """Minari data root with real trajectories; users may not have it, then the test is skipped."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    root = Path(os.environ.get("MINARI_DATASETS_PATH", beside))
    if not (root / "gym").is_dir():
        pytest.skip(f"no datasets under {root}: set MINARI_DATASETS_PATH to a Minari data root")
    return root
