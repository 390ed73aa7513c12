"""Linear attention: weights are products of positive features, so that the past fits in a matrix.

    o_t = Σ_{s<=t} φ(q_t)·φ(k_s) v_s / Σ_{s<=t} φ(q_t)·φ(k_s)

Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236: φ(x) = elu(x) + 1. Hedgehog
(Zhang et al., arXiv 2402.04347): φ is learned, to be as sharp as softmax. Lightning attention (Qin
et al., arXiv 2401.04658, as in MiniMax-01, arXiv 2501.08313) divides by no sum and decays instead,
at a fixed rate a head.
Shapes: H heads, K key, F feature and V value width of a head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.gated_linear import GatedLinearAttention, GatedLinearOptions
from decision_s4.kernels.gated_linear import gated_linear, gated_linear_step
from decision_s4.kernels.packing import Packing

FLOOR = 1e-12
"""Of a feature, Hedgehog published: where all underflow, a weight were 0 / 0, its gradient NaN."""


@register("linear-attention")
class LinearAttention(GatedLinearAttention[None]):
    """φ = elu + 1. State (B, H, F, V + 1): the last column sums the features alone."""

    def __init__(self, d_model: int, options: GatedLinearOptions):
        super().__init__(d_model, options)
        heads, key, value = self.shape
        bias = getattr(options, "bias", False)
        self._make_projections(d_model, heads * key, heads * key, heads * value, bias=bias)

    def feature_width(self) -> int:
        """F."""
        return self.shape[1]

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """φ of queries and keys, (…, H, K) -> (…, H, F)."""
        q, k = ((F.elu(x) + 1).clamp(min=FLOOR) for x in (q, k))
        return q, k

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        heads, _, value = self.shape
        shape = (batch_size, heads, self.feature_width(), value + 1)
        return torch.zeros(shape, dtype=self.in_proj.weight.dtype, device=device)

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v = self._heads(*parts)
        q, k = self.features(q, k)
        return q, k, v, q.new_zeros(*q.shape[:-1], 1), None

    def _scan(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        o, state = gated_linear(q, k, _and_one(v), log_gate, state, packing, ops.impl())
        if packing.valid is not None:  # 0 / 0 elsewhere
            o = torch.where(packing.valid[..., None, None], o, 1)
        return _divide(o), state

    def _scan_step(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        o, state = gated_linear_step(q, k, _and_one(v), log_gate, state)
        return _divide(o), state

    def _read_out(self, o: Tensor, out_gate: None) -> Tensor:
        return o.flatten(-2)

    def log_decays(self, coefficients: ops.Coefficients) -> None:
        return None

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """φ(q_t)·φ(k_s) over their sum."""
        q, k, gate, total = (coefficients[n] for n in ("query", "key", "log gate", "sum"))
        found = rows.each(steps, lambda t: rows.gated(q / total, k, gate, packing, t))
        return found if part == "scan" else found.repeat_interleave(self.shape[2], 1)


def _and_one(v: Tensor) -> Tensor:
    return torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1)


def _divide(o: Tensor) -> Tensor:
    return o[..., :-1] / ops.coefficient("sum", o[..., -1:])


@dataclass(frozen=True)
class HedgehogOptions(GatedLinearOptions):
    """Options of `hedgehog`."""

    bias: bool = False
    """Whether the projections have biases, as a transformer's do (see --distill-from)."""


@register("hedgehog")
class Hedgehog(LinearAttention):
    """φ(x) = (softmax(W x), softmax(−W x)), W (K, K) a head, one for queries and one for keys.

    They begin as identities, as published.
    """

    Options = HedgehogOptions

    def __init__(self, d_model: int, options: HedgehogOptions):
        super().__init__(d_model, options)
        heads, key, _ = self.shape
        eye = torch.eye(key).expand(2, heads, key, key)
        self.feature_maps = nn.Parameter(eye.clone())

    def feature_width(self) -> int:
        return 2 * self.shape[1]

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (
            torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1).clamp(min=FLOOR)
            for y in (
                torch.einsum("...hk,hjk->...hj", x, by)
                for x, by in zip((q, k), self.feature_maps, strict=True)
            )
        )
        return q, k


@register("lightning")
class Lightning(GatedLinearAttention[Tensor]):
    """S_t = λ S_{t−1} + k vᵀ, o = Sᵀ q;  q, k, v = silu(W x);  out = W_o (RMSNorm(o) ⊙ σ(W_g x)).

    λ = exp(−2^(−8 h / H) (1 − l / L)) in head h = 1 … H of layer l = 0 … L − 1, so that deeper
    layers remember longer.
    """

    Options = GatedLinearOptions

    def __init__(self, d_model: int, options: GatedLinearOptions, depth: float = 0.0):
        super().__init__(d_model, options)
        heads, key, value = self.shape
        keys, values = heads * key, heads * value
        self._make_projections(d_model, keys, keys, values, values)
        self.depth = depth
        self.norm = ops.RMSNorm(values, eps=1e-5)

    @classmethod
    def layers(cls, d_model: int, options: Any, n_layers: int) -> list[Mixer]:
        return [cls(d_model, options, layer / n_layers) for layer in range(n_layers)]

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        *qkv, out_gate = parts
        q, k, v = self._heads(*(ops.act(each, "silu") for each in qkv))
        heads = self.shape[0]
        head = torch.arange(1, heads + 1, dtype=q.dtype, device=q.device)
        slope = torch.exp2(-8 * head / heads) * (1 - self.depth)
        return q, k, v, -slope[:, None].expand(*q.shape[:-1], 1), out_gate

    def _read_out(self, o: Tensor, out_gate: Tensor) -> Tensor:
        by = ops.coefficient("gate", torch.sigmoid(out_gate))
        return ops.norm(o.flatten(-2), self.norm, "norm") * by
