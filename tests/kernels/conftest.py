"""What tests of kernels share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


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
