"""Where a tree of tensors lies on a device, always at the same addresses, filled by one copy."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

ALIGNMENT = 16  # bytes


class Place:
    """Tensors of a tree side by side in one buffer; `given` are they.

    Args:
        tree: tensors on the CPU of the shapes and types that all trees to come have.
        device: where the buffer is.
    """

    def __init__(self, tree: Any, device: torch.device):
        cuda = device.type == "cuda"
        size = sum(_span(leaf) for leaf in tree_leaves(tree))
        self.host = torch.zeros(size, dtype=torch.uint8, pin_memory=cuda)
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.written, self.given = _views(self.host, tree), _views(self.buffer, tree)
        self.copied = torch.cuda.Event() if cuda else None

    def fill(self, tree: Any) -> None:
        """Copy the tree's values there."""
        if self.copied:
            self.copied.synchronize()  # the copy before has been read
        for place, leaf in zip(tree_leaves(self.written), tree_leaves(tree), strict=True):
            place.copy_(leaf)
        self.buffer.copy_(self.host, non_blocking=True)
        if self.copied:
            self.copied.record(torch.cuda.current_stream(self.buffer.device))


def _span(leaf: Tensor) -> int:
    """Bytes that a leaf takes in a buffer."""
    return -(-leaf.numel() * leaf.element_size() // ALIGNMENT) * ALIGNMENT


def _views(buffer: Tensor, tree: Any) -> Any:
    """The tree's shapes and types, one after another in `buffer`."""
    begin = 0

    def view(leaf: Tensor) -> Tensor:
        nonlocal begin
        used = buffer[begin : begin + leaf.numel() * leaf.element_size()]
        begin += _span(leaf)
        return used.view(leaf.dtype).view(leaf.shape)

    return tree_map(view, tree)
