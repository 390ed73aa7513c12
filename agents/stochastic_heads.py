"""Distributions over actions, for learning from samples: what features (…, D) mean in a space.

Each head has `act(features, deterministic)`, `log_prob(features, action) -> (…)` and
`entropy(features) -> (…)`, summed over an action's parts.
"""

import functools
import math

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.heads import BoxHead, DiscreteHead
from decision_s4.envs.errors import UserError

# Small first outputs: all actions are near the middle, or as likely (Andrychowicz et al., arXiv
# 2006.05990, section 3.2).
FIRST_SCALE = 0.01


class GaussianHead(BoxHead):
    """A normal distribution with a free deviation, in units of half the action range.

    Samples may leave a bounded Box; whoever steps the environment clips them, and probabilities
    are those of the action before that.
    """

    def __init__(self, d_model: int, space: spaces.Box, log_std: float = -0.5):
        super().__init__(d_model, space)
        self.bounded = False  # the mean is not squashed
        self.log_std = nn.Parameter(torch.full((len(self.reach),), log_std))
        _start_small(self.linear)

    def act(self, features: Tensor, deterministic: bool = True) -> Tensor:
        """(…, D) -> (…, *space.shape), in the action space's units: the mean, or a sample."""
        unit = self.linear(features)
        if not deterministic:
            unit = unit + self.log_std.exp() * torch.randn_like(unit)
        return (self.centre + self.reach * unit).view(*features.shape[:-1], *self.shape)

    def log_prob(self, features: Tensor, action: Tensor) -> Tensor:
        """(…): log-density in units of half the range."""
        flat = action.reshape(*features.shape[:-1], len(self.reach))
        unit = (flat - self.centre) / self.reach
        deviation = (unit - self.linear(features)) / self.log_std.exp()
        return (-0.5 * deviation.square() - self.log_std - HALF_LOG_TAU).sum(-1)

    def entropy(self, features: Tensor) -> Tensor:
        """(…)."""
        return (self.log_std + 0.5 + HALF_LOG_TAU).sum().expand(features.shape[:-1])


class CategoricalHead(DiscreteHead):
    """A categorical distribution for each part of a Discrete or MultiDiscrete."""

    def __init__(self, d_model: int, space: spaces.Discrete | spaces.MultiDiscrete):
        super().__init__(d_model, space)
        _start_small(self.linear)

    def act(self, features: Tensor, deterministic: bool = True) -> Tensor:
        """(…, D) -> (…, *space.shape) int64: the likeliest action, or a sample."""
        logits = self.linear(features)
        if not deterministic:  # the largest of logits with Gumbel noise is a sample
            logits = logits - torch.empty_like(logits).exponential_().log()
        index = torch.stack([part.argmax(-1) for part in logits.split(self.counts, -1)], -1)
        return (index + self.lowest).view(*features.shape[:-1], *self.shape)

    def log_prob(self, features: Tensor, action: Tensor) -> Tensor:
        """(…)."""
        return -self.loss(features, action)

    def entropy(self, features: Tensor) -> Tensor:
        """(…)."""
        parts = [part.log_softmax(-1) for part in self.linear(features).split(self.counts, -1)]
        return -functools.reduce(torch.add, [(part.exp() * part).sum(-1) for part in parts])


HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@torch.no_grad()
def _start_small(layer: nn.Linear) -> None:
    nn.init.orthogonal_(layer.weight, FIRST_SCALE)
    layer.bias.zero_()


def make_stochastic_head(d_model: int, space: spaces.Space) -> GaussianHead | CategoricalHead:
    """The distribution for an action space. Raises UserError for a space that none knows."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(d_model, space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return CategoricalHead(d_model, space)
    raise UserError(
        f"action space {space} has no distribution; use a Box of floats, Discrete or MultiDiscrete"
    )
