"""Arrays of environments and datasets as the tensors that policies read."""

import numpy as np
import torch


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """Floats as float32, bytes and truth values as they are, other integers as int64.

    It shares memory with an array that is of such a type already.
    """
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float32, copy=False)
    elif values.dtype not in (np.uint8, np.bool_):
        values = values.astype(np.int64, copy=False)
    return torch.from_numpy(values)
