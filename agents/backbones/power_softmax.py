"""Attention whose weights are a power of the scores, not an exponential: a ratio of polynomials.

    y_t = Σ_s x_ts^p v_s / Σ_s x_ts^p,   x_ts = q_t · k_s / √d,   p even

Zimerman et al., "Power-Softmax", arXiv 2410.09457; for policies that run on encrypted inputs, where
exp has no cheap form. Scores of one query may be scaled at will: they are divided by the largest in
size, so that no power overflows or vanishes. Where a polynomial stands in for the division, powers
are left as they are, and their mean over the steps seen is divided by.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.attention import scores
from decision_s4.agents.backbones.base import register
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.envs.errors import UserError


@dataclass(frozen=True)
class PowerSoftmaxOptions(TransformerOptions):
    """Options of `power-softmax`."""

    power: int = 4
    """p, even: the higher, the sharper."""


@register("power-softmax")
class PowerSoftmax(Transformer):
    """Sliding-window attention; its state is the ring of the last W − 1 keys and values."""

    Options = PowerSoftmaxOptions
    options: PowerSoftmaxOptions
    marked = True

    def __init__(self, d_model: int, options: PowerSoftmaxOptions):
        super().__init__(d_model, options)
        if options.power < 2 or options.power % 2:
            raise UserError(f"power {options.power} must be even and at least 2")

    def weigh(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        x = scores(q, k).masked_fill(~mask, 0)
        if ops.has_stand_in():
            return self._shares(x, mask)
        tiny = torch.finfo(x.dtype).tiny
        x = x / x.detach().abs().amax(-1, keepdim=True).clamp(min=tiny)
        powers = x**self.options.power
        return powers / powers.sum(-1, keepdim=True).clamp(min=tiny)  # 0 where all scores are

    def _shares(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same of scores x (…, L, P + L), as one quotient a query."""
        powers = x**self.options.power / mask.sum(-1, keepdim=True).clamp(min=1)
        total = powers.sum(-1, keepdim=True)
        asked = total > 0  # not so where nothing asks: padding of a chunk
        degree = 2 * self.options.power
        quotient = ops.Asked("reciprocal", degree, degree + 1)
        found = torch.zeros_like(total).masked_scatter(
            asked, ops.function(quotient, total[asked][:, None])
        )
        return powers * found
