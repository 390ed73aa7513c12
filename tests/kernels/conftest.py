"""What tests of kernels share; helpers of this folder are imported by name."""

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@contextmanager
def _nan_in_empty_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def nan_in_empty_memory() -> Callable[[], AbstractContextManager[None]]:
    """Within it, what is allocated and not written reads as NaN."""
    return _nan_in_empty_memory


@pytest.fixture(scope="session")
def emulated_kernel() -> type:
    """Takes the place of `nvrtc.Kernel` where there is no GPU."""
    return runpy.run_path(str(Path(__file__).with_name("emulated.py")))["Kernel"]
