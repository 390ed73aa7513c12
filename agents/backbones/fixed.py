"""What follows from parameters that seldom change, computed when they have."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class Fixed:
    """`compute()` without gradients, kept until one of the parameters given is another.

    A write in place counts, a move to another device too. While a CUDA graph is recorded nothing is
    kept, for what is computed then has no value yet. A copy begins with nothing.
    """

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.value: Any = None

    def __deepcopy__(self, memo: Any) -> "Fixed":
        return Fixed()

    def __call__(self, compute: Callable[[], Any], parameters: Sequence[nn.Parameter]) -> Any:
        if any(parameter.is_inference() for parameter in parameters):
            return compute()  # such tensors do not count their writes
        key = versions(parameters)
        if key == self.key:
            return self.value
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.key, self.value = key, value
        return value


def versions(parameters: Sequence[nn.Parameter]) -> tuple:
    """Equal as long as none of the parameters is written or moved."""
    return tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in parameters)
