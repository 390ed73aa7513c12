"""Observation and action spaces in: any Gymnasium space as one feature vector, then one Linear.

Shapes: … any leading dimensions, F features of a space, E embedding width.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.envs.errors import UserError


class Standardised(nn.Module):
    """A Box as a flat vector, standardised by statistics that are saved with the weights."""

    def __init__(self, space: spaces.Box):
        super().__init__()
        self.dims = len(space.shape)
        self.width = int(np.prod(space.shape))
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))

    def set_statistics(self, mean: Any, std: Any) -> None:
        """Take the dataset's mean and standard deviation, of the space's shape."""
        for buffer, value in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.as_tensor(np.asarray(value)).reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(x.ndim - self.dims) if self.dims else x[..., None]
        return (flat.to(self.mean.dtype) - self.mean) / self.std


class OneHot(nn.Module):
    """Discrete, MultiDiscrete and MultiBinary as one-hot (or binary) features."""

    def __init__(self, space: spaces.Space):
        super().__init__()
        self.binary = isinstance(space, spaces.MultiBinary)
        if self.binary:
            self.width = int(np.prod(space.shape))
            self.dims = len(space.shape)
            return
        self.dims = len(space.shape)
        counts = np.atleast_1d(space.nvec if self.dims else space.n).reshape(-1)
        self.counts = [int(n) for n in counts]
        self.lowest = torch.as_tensor(np.atleast_1d(space.start).reshape(-1))
        self.width = sum(self.counts)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(x.ndim - self.dims) if self.dims else x[..., None]
        if self.binary:
            return flat.to(torch.get_default_dtype())
        index = (flat - self.lowest.to(flat.device)).long()
        parts = [F.one_hot(i, n) for i, n in zip(index.unbind(-1), self.counts, strict=True)]
        return torch.cat(parts, dim=-1).to(torch.get_default_dtype())


class Image(nn.Module):
    """A uint8 image, channels first or last, through a small convolutional network."""

    width = 128

    def __init__(self, space: spaces.Box):
        super().__init__()
        self.channels_last = space.shape[-1] <= 4 < space.shape[0]
        channels = space.shape[-1] if self.channels_last else space.shape[0]
        self.network = nn.Sequential(
            nn.Conv2d(channels, 16, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, self.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        image = x.reshape(-1, *x.shape[-3:]).to(self.network[0].weight.dtype) / 255 - 0.5
        image = image.movedim(-1, 1) if self.channels_last else image
        return self.network(image).view(*lead, self.width)


class Composite(nn.Module):
    """Dict and Tuple: the parts' features side by side, in the tree's order."""

    def __init__(self, parts: dict[str, spaces.Space]):
        super().__init__()
        self.parts = nn.ModuleDict({name: make_features(space) for name, space in parts.items()})
        self.width = sum(part.width for part in self.parts.values())

    def forward(self, x: dict[str, Any]) -> Tensor:
        return torch.cat([part(x[name]) for name, part in self.parts.items()], dim=-1)

    def set_statistics(self, mean: dict[str, Any], std: dict[str, Any]) -> None:
        """Hand each part its own statistics."""
        for name, part in self.parts.items():
            set_statistics(part, mean[name], std[name])


def is_image(space: spaces.Space) -> bool:
    """A three-dimensional Box of bytes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def make_features(space: spaces.Space) -> nn.Module:
    """The module that turns values of `space` into (…, width) features.

    Raises:
        UserError: for a space that no encoder knows.
    """
    if is_image(space):
        return Image(space)
    if isinstance(space, spaces.Box):
        return Standardised(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return OneHot(space)
    if isinstance(space, spaces.Dict):
        return Composite(dict(space.spaces))
    if isinstance(space, spaces.Tuple):
        return Composite({str(i): part for i, part in enumerate(space.spaces)})
    raise UserError(
        f"space {space} has no encoder; use Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"
    )


def set_statistics(features: nn.Module, mean: Any, std: Any) -> None:
    """Give the observation statistics to the parts that standardise."""
    if isinstance(features, Standardised | Composite):
        features.set_statistics(mean, std)
