"""Distributions out: what a policy's last features (…, D) mean in an action space.

Every head has `loss(features, action) -> (…)`, per step, and `act(features, deterministic)`.
"""

import functools

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import leaf_shape


class BoxHead(nn.Module):
    """A deterministic continuous action; tanh squashes it into a bounded Box."""

    centre: Tensor
    reach: Tensor

    def __init__(self, d_model: int, space: spaces.Box):
        super().__init__()
        self.shape = space.shape
        self.linear = nn.Linear(d_model, int(np.prod(space.shape)))
        self.bounded = space.is_bounded("both")
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not self.bounded:
            low, high = -np.ones(self.shape), np.ones(self.shape)
        centre, reach = (low + high) / 2, np.where(low == high, 1.0, (high - low) / 2)
        dtype = torch.get_default_dtype()
        self.register_buffer("centre", torch.tensor(centre, dtype=dtype).reshape(-1))
        self.register_buffer("reach", torch.tensor(reach, dtype=dtype).reshape(-1))

    def _unit(self, features: Tensor) -> Tensor:
        out = self.linear(features)
        return ops.act(out, "tanh") if self.bounded else out

    def loss(self, features: Tensor, action: Tensor) -> Tensor:
        """Squared error, mean over action dimensions, in units of half the action range."""
        flat = action.reshape(*features.shape[:-1], len(self.reach)).to(self.reach.dtype)
        return (self._unit(features) - (flat - self.centre) / self.reach).square().mean(-1)

    def act(self, features: Tensor, deterministic: bool = True) -> Tensor:
        """(…, D) -> (…, *space.shape), in the action space's units."""
        action = self.centre + self.reach * self._unit(features)
        return action.view(*features.shape[:-1], *self.shape)


class DiscreteHead(nn.Module):
    """Logits of Discrete or MultiDiscrete actions."""

    lowest: Tensor

    def __init__(self, d_model: int, space: spaces.Discrete | spaces.MultiDiscrete):
        super().__init__()
        self.shape = leaf_shape(space)
        counts = np.ravel(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)
        self.counts = [int(n) for n in counts]
        lowest = torch.as_tensor(np.atleast_1d(space.start).reshape(-1))
        self.register_buffer("lowest", lowest, persistent=False)
        self.linear = nn.Linear(d_model, sum(self.counts))

    def loss(self, features: Tensor, action: Tensor) -> Tensor:
        """Cross-entropy, summed over the parts of a MultiDiscrete."""
        index = action.reshape(*features.shape[:-1], len(self.counts)) - self.lowest
        parts = zip(
            self.linear(features).split(self.counts, -1), index.long().unbind(-1), strict=True
        )
        losses = [
            F.cross_entropy(logits.flatten(0, -2), i.flatten(), reduction="none").view(i.shape)
            for logits, i in parts
        ]
        return functools.reduce(torch.add, losses)

    def act(self, features: Tensor, deterministic: bool = True) -> Tensor:
        """(…, D) -> (…, *space.shape) int64: the likeliest action, or a sample."""
        parts = self.linear(features).split(self.counts, -1)
        if deterministic:
            index = torch.stack([logits.argmax(-1) for logits in parts], -1)
        else:
            index = torch.stack(
                [torch.distributions.Categorical(logits=logits).sample() for logits in parts], -1
            )
        return (index + self.lowest).view(*features.shape[:-1], *self.shape)


def make_head(d_model: int, space: spaces.Space) -> BoxHead | DiscreteHead:
    """The head for an action space.

    Raises:
        UserError: for a space that no head knows.
    """
    if isinstance(space, spaces.Box):
        return BoxHead(d_model, space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return DiscreteHead(d_model, space)
    raise UserError(f"action space {space} has no head; use Box, Discrete or MultiDiscrete")
