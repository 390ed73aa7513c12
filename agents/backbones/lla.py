"""Local linear attention: at each query a line is fitted to the values, not only a constant.

    y_t = b of  min_{b, A} Σ_s w_s |v_s − b − A (k_s − q_t)|² + λ |A|²,  w = softmax(q_t · k / √d)

These are attention weights w_s (1 − (k_s − q_t) · ρ) / (1 − μ · ρ) with ρ = (Σ + λ)⁻¹ μ, μ, Σ the
mean and the second moment of k_s − q_t under w; λ → ∞ is softmax attention. "Local Linear
Attention: An Optimal Interpolation of Linear and Softmax Attention for Test-Time Regression", arXiv
2510.01450. There over all of the past; here, as attention here, over the last W steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.backbones.attention import softmax
from decision_s4.agents.backbones.base import register
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.envs.errors import UserError

SMALLEST = 1e-5  # there float32 is 1e-4 off; below, 1 − μ · ρ of first steps is rounding, then NaN


@dataclass(frozen=True)
class LocalLinearOptions(TransformerOptions):
    """Options of `lla`."""

    ridge: float = 1.0
    """λ, against slopes that the window's keys do not tell."""


@register("lla")
class LocalLinearAttention(Transformer):
    """Sliding-window attention; its state is the ring of the last W − 1 keys and values."""

    Options = LocalLinearOptions
    options: LocalLinearOptions

    def __init__(self, d_model: int, options: LocalLinearOptions):
        super().__init__(d_model, options)
        if not SMALLEST <= options.ridge < float("inf"):
            raise UserError(f"ridge {options.ridge} must be at least {SMALLEST}")

    def weigh(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            q, k = (part.to(self.out.weight.dtype) for part in (q, k))
            weights = softmax(q, k, mask)  # (R, H, L, P + L)
            mean_k = weights @ k
            mean = mean_k - q  # (R, H, L, d)
            outer = (k[..., None] * k[..., None, :]).flatten(-2)
            moment = (weights @ outer).unflatten(-1, (k.shape[-1],) * 2)
            cross = mean_k[..., None] * q[..., None, :]
            moment = moment - cross - cross.mT + q[..., None] * q[..., None, :]
            eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
            # `_ex`, as what is not finite must not stop the other episodes.
            slope, _ = torch.linalg.solve_ex(moment + self.options.ridge * eye, mean)
            tilt = slope @ k.mT - (slope * q).sum(-1, keepdim=True)  # (k_s − q_t) · ρ
            rest = (mean * slope).sum(-1, keepdim=True)
            return weights * (1 - tilt) / (1 - rest)
