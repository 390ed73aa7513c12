"""Retention: linear attention whose decay is fixed and whose keys turn with their age.

    S_t = γ R(θ)ᵀ S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t,   out = W_o (RMSNorm(o) ⊙ silu(W_g x))

RetNet (Sun et al., arXiv 2307.08621, section 2): head h has γ = 1 − 2^(−5−h), and R(θ) turns each
pair of key channels by an angle of its own. Positions count only as differences, so the state
holds none: it turns back by one step at each step. In parallel q and k turn forth instead, as
published: (R(tθ) q_t) · (R(sθ) k_s).
Shapes: H heads, K key and V value width of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import register
from decision_s4.agents.backbones.gated_linear import GatedLinearAttention, GatedLinearOptions
from decision_s4.envs.errors import UserError
from decision_s4.kernels.gated_linear import gated_linear, gated_linear_step
from decision_s4.kernels.packing import Packing

SLOWEST = 10_000.0  # angles a step fall from 1 towards 1 / SLOWEST


@dataclass(frozen=True)
class RetNetOptions(GatedLinearOptions):
    """Options of `retnet`."""

    expand_v: float = 2.0
    """Values of all heads together, as a multiple of d_model."""


@register("retnet")
class RetNet(GatedLinearAttention[Tensor]):
    """The state (B, H, K, V) is in the frame of the last step."""

    Options = RetNetOptions

    def __init__(self, d_model: int, options: RetNetOptions):
        super().__init__(d_model, options)
        heads, key, value = self.shape
        if key % 2:
            raise UserError(f"expand_k {options.expand_k} makes {key} keys a head; it must be even")
        keys, values = heads * key, heads * value
        self._make_projections(d_model, keys, keys, values, values)
        self.norm = ops.RMSNorm(value, eps=1e-5)

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        q, k, v, out_gate = parts
        q, k, v = self._heads(q, k, v)
        head = torch.arange(self.shape[0], dtype=torch.float64, device=q.device)
        log_decay = torch.log1p(-torch.exp2(-5 - head)).to(q.dtype)
        log_gate = log_decay[:, None].expand(*q.shape[:-1], 1)
        return q * self.shape[1] ** -0.5, k, v, log_gate, out_gate

    def _read_out(self, o: Tensor, out_gate: Tensor) -> Tensor:
        return ops.gate(
            ops.norm(o, self.norm, "norm").flatten(-2), ops.act(out_gate, "silu"), "gate"
        )

    def _scan(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """In the frame before each row's first step, so that its state stays; then to its last."""
        q, k = self._in_one_frame(q, k, packing)
        o, state = gated_linear(q, k, v, log_gate, state, packing, ops.impl())
        return o, _turn_state(state, -_positions(packing)[:, -1])

    def _in_one_frame(self, q: Tensor, k: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        position = _positions(packing)[..., None]
        return turn(q, position), turn(k, position)

    def _scan_step(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        one = torch.ones(1, dtype=torch.float64, device=q.device)
        return gated_linear_step(q, k, v, log_gate, _turn_state(state, -one))


def turn(x: Tensor, steps: Tensor) -> Tensor:
    """x (…, K) turned by `steps` (…) times θ: pair i is channels i and i + K / 2.

    Angles are float64: as float32 they would be off by 1e-3 after 10,000 steps.
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, dtype=torch.float64, device=x.device) / half
    angle = steps[..., None] * SLOWEST**-exponent
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _turn_state(state: Tensor, steps: Tensor) -> Tensor:
    """state (B, H, K, V) turned by `steps` (B,) or (1,) times θ."""
    return turn(state.transpose(2, 3), steps[:, None, None]).transpose(2, 3)


def _positions(packing: Packing) -> Tensor:
    """Valid steps of the row so far, (B, T) float64; only differences within an episode count."""
    valid = torch.ones_like(packing.start) if packing.valid is None else packing.valid
    return valid.cumsum(1).double()
