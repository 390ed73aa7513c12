"""Observation and action spaces in: any Gymnasium space as one feature vector, then one Linear.

Shapes: … any leading dimensions, F features of a space, E embedding width.
"""

from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.agents.vision import make_eyes
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import leaf_shape


class Standardised(nn.Module):
    """A Box as a flat vector, standardised by statistics that are saved with the weights."""

    mean: Tensor
    std: Tensor

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
    """Discrete, MultiDiscrete and MultiBinary as one-hot (or binary) features.

    A number outside the space, as the 0 of padding is where the space starts at 1, is all zeros.
    """

    part: Tensor
    value: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        super().__init__()
        self.dims = len(leaf_shape(space))
        parts = _choices(space)
        self.width = sum(map(len, parts))
        part = np.repeat(np.arange(len(parts)), [len(values) for values in parts])
        self.register_buffer("part", torch.from_numpy(part), persistent=False)
        value = torch.from_numpy(np.concatenate(parts))
        self.register_buffer("value", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(x.ndim - self.dims) if self.dims else x[..., None]
        return (flat[..., self.part] == self.value).to(torch.get_default_dtype())


def _choices(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> list:
    """The values that have a feature, of each number of the flattened space."""
    if isinstance(space, spaces.MultiBinary):
        return [np.array([1])] * int(np.prod(space.shape))
    counts = space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n
    pairs = zip(np.ravel(counts), np.ravel(space.start), strict=True)
    return [start + np.arange(count) for count, start in pairs]


class Image(nn.Module):
    """A uint8 image, channels first or last, through a network of `vision.py`."""

    width = 128

    def __init__(self, space: spaces.Box, eyes: str):
        super().__init__()
        first, middle, last = space.shape
        self.channels_last = first == middle or (middle != last and last < first)
        shape = (last, first, middle) if self.channels_last else (first, middle, last)
        self.network = make_eyes(eyes, shape, self.width)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        image = x.reshape(-1, *x.shape[-3:]).to(next(self.network.parameters()).dtype) / 255 - 0.5
        image = image.movedim(-1, 1) if self.channels_last else image
        return self.network(image).view(*lead, self.width)


class Composite(nn.Module):
    """Dict and Tuple: the parts' features side by side, sorted: spaces may lose their order."""

    def __init__(self, parts: dict[str, spaces.Space], eyes: str):
        super().__init__()
        self.names = sorted(parts)
        self.parts = ModuleList(make_features(parts[name], eyes) for name in self.names)
        self.width: int = sum(part.width for part in self.parts)

    def forward(self, x: dict[str, Any]) -> Tensor:
        return torch.cat([part(x[name]) for name, part in self._named()], dim=-1)

    def _named(self) -> "Iterator[tuple[str, Features]]":
        return zip(self.names, self.parts, strict=True)

    def set_statistics(self, mean: dict[str, Any], std: dict[str, Any]) -> None:
        """Hand each part its own statistics."""
        for name, part in self._named():
            set_statistics(part, mean[name], std[name])


Features = Standardised | OneHot | Image | Composite
"""What turns values of a space into (…, width) features."""


def is_image(space: spaces.Space) -> TypeGuard[spaces.Box]:
    """A three-dimensional Box of bytes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def make_features(space: spaces.Space, eyes: str = "cnn") -> Features:
    """The module that turns values of `space` into (…, width) features, images through `eyes`.

    Raises:
        UserError: for a space that no encoder knows.
    """
    if is_image(space):
        return Image(space, eyes)
    if isinstance(space, spaces.Box):
        return Standardised(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return OneHot(space)
    if isinstance(space, spaces.Dict):
        return Composite(dict(space.spaces), eyes)
    if isinstance(space, spaces.Tuple):
        return Composite({str(i): part for i, part in enumerate(space.spaces)}, eyes)
    raise UserError(
        f"space {space} has no encoder; use Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"
    )


def set_statistics(features: nn.Module, mean: Any, std: Any) -> None:
    """Give the observation statistics to the parts that standardise."""
    if isinstance(features, Standardised | Composite):
        features.set_statistics(mean, std)
