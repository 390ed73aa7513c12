"""Time mixing of RWKV-7, "Goose" (Peng et al., arXiv 2503.14456, section 4).

    x' = x_t + μ' ⊙ (x_{t−1} − x_t), one μ' for each of r, k, v, w, a, g, which are maps of their x'
    S_t = (diag(w) − (a ⊙ κ) κᵀ) S_{t−1} + k̃ vᵀ,   κ = unit(ξ ⊙ k),   k̃ = k ⊙ (1 + (a − 1) ⊙ α)
    out = W_o (g ⊙ (LayerNorm(Sᵀ r) + (r · (ρ ⊙ k̃)) v))
    w = exp(−e^(−1/2) σ(w₀ + W₂ tanh(W₁ x'))),   a = σ(a₀ + A₂ A₁ x'),   g = G₂ σ(G₁ x')

A delta rule whose decay, erased and written direction are independent; w − a < 0 is possible, which
parity needs. Not here: mixing a layer's values with the first layer's, a norm with weights of each
head's own. RWKV's channel mixing is the stack's MLP. A step is two of `delta_rule`: erase, then
write. Shapes: H heads of K channels.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.delta_rule import unit
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.envs.errors import UserError
from decision_s4.kernels.delta_rule import delta_rule, delta_rule_step, fused
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import short_conv, short_conv_step

PARTS = ("receptance", "key", "value", "decay", "rate", "gate")
Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # the first five of `delta_rule`


@dataclass(frozen=True)
class RWKVOptions:
    """Options of `rwkv`."""

    n_heads: int = 2
    """Heads H; each takes d_model / n_heads of the width, published 64."""
    rank: int = 16
    """Rank of the maps from input to decays w, rates a and output gates g."""


@register("rwkv")
class RWKV(Mixer):
    """Version 7. The state is (the last input (B, D, 1), S (B, H, K, K))."""

    Options = RWKVOptions
    recurrence_parameters = ("decay_bias",)
    mixing: ClassVar = {"scan": "heads"}

    def __init__(self, d_model: int, options: RWKVOptions):
        super().__init__()
        heads, rank = options.n_heads, options.rank
        if heads < 1 or d_model % heads:
            raise UserError(f"n_heads {heads} does not divide d_model {d_model}; use one that does")
        check_counts(options, "rank")
        self.shape = (heads, d_model // heads)
        ramp = torch.arange(d_model) / d_model
        self.shift = nn.Parameter((1 - ramp**0.5).repeat(len(PARTS), 1))
        self.maps = ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.down = ModuleList(nn.Linear(d_model, rank, bias=False) for _ in range(3))
        self.up = ModuleList(nn.Linear(rank, d_model, bias=False) for _ in range(3))
        self.decay_bias = nn.Parameter(torch.linspace(-6.5, -1.5, d_model))  # w from .999 to .9
        self.rate_bias = nn.Parameter(torch.zeros(d_model))
        self.erased = nn.Parameter(torch.ones(d_model))  # ξ
        self.replaced = nn.Parameter(torch.ones(d_model))  # α
        self.bonus = nn.Parameter(torch.zeros(self.shape))  # ρ
        self.norm = ops.LayerNorm(self.shape[1], eps=64e-5)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def can_be_recorded(self, device: torch.device) -> bool:
        return fused(self.shape[1], next(self.parameters()).dtype, device)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        heads, key = self.shape
        return tuple(
            torch.zeros(batch_size, *shape, dtype=self.bonus.dtype, device=device)
            for shape in ((heads * key, 1), (heads, key, key))
        )

    def constants(self) -> Tensor:
        """Weights (D, 2) of the convolution that shifts by a step."""
        first = torch.eye(1, 2, dtype=self.bonus.dtype, device=self.bonus.device)
        return first.expand(len(self.rate_bias), 2)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        if packing.valid is not None:
            x = x.where(packing.valid[..., None], 0)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.bonus.dtype)
            before, last = short_conv(x, self.constants(), None, state[0], packing, ops.impl())
        r, k, v, log_w, kappa, by, gate = self._inputs(x, before)
        with torch.autocast(x.device.type, enabled=False):
            v = ops.tap("scan.values", v)
            halves = self._halves(r, k, ops.value(v, 3), log_w, kappa, by)
            each = (torch.stack(pair, 2).flatten(1, 2) for pair in zip(*halves, strict=True))
            query, key, write, value, decay = each
            of = state[1], packing.twice, ops.impl()
            o, S = delta_rule(query, key, write, value, decay, *of)
            y = self._read_out(ops.tap("scan.mixed", o[:, 1::2]), r, k, v, gate)
        return self.out(y), (last, S)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.bonus.dtype)
            before, last = short_conv_step(x, constants, None, state[0])
        r, k, v, log_w, kappa, by, gate = self._inputs(x, before)
        with torch.autocast(x.device.type, enabled=False):
            erase, write = self._halves(r, k, v, log_w, kappa, by)
            _, S = delta_rule_step(*erase, state[1])
            o, S = delta_rule_step(*write, S)
            y = self._read_out(o, r, k, v, gate)
        return self.out(y), (last, S)

    def _inputs(
        self, x: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """r, k̃, v, log w, κ, a ⊙ κ (…, H, K) and g (…, D), the coefficients marked."""
        shifted = [torch.lerp(x, before, by) for by in self.shift]
        r, k, v = (layer(part) for layer, part in zip(self.maps, shifted[:3], strict=True))
        decay, rate, gate = (
            layer(part) for layer, part in zip(self.down, shifted[3:], strict=True)
        )
        decay, rate = self.up[0](torch.tanh(decay)), self.up[1](rate)
        gate = self.up[2](torch.sigmoid(gate))
        dtype = self.bonus.dtype
        r, k, v, decay, rate, gate = (each.to(dtype) for each in (r, k, v, decay, rate, gate))
        log_w = -math.exp(-0.5) * torch.sigmoid(self.decay_bias + decay)
        rate = torch.sigmoid(self.rate_bias + rate)
        kappa, k = self.erased * k, k * (1 + (rate - 1) * self.replaced)
        heads = (r, k, v, log_w, kappa, rate)
        r, k, v, log_w, kappa, rate = (each.unflatten(-1, self.shape) for each in heads)
        kappa = ops.coefficient("erased", unit(kappa, "erased length"))
        return (
            ops.coefficient("query", r, factors=3),
            ops.coefficient("key", k, factors=3),
            v,
            ops.coefficient("log gate", log_w),
            kappa,
            ops.coefficient("rate", rate) * kappa,
            ops.coefficient("gate", gate),
        )

    def _halves(
        self, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, kappa: Tensor, by: Tensor
    ) -> tuple[Arguments, Arguments]:
        """Arguments of `delta_rule`: erase along a ⊙ κ what stood at κ, then write v at k̃.

        It decays before it looks up, RWKV after: κ / w undoes the decay, at most a factor 1.83.
        """
        zero = torch.zeros_like(r)
        erase = (zero, kappa * torch.exp(-log_w), by, torch.zeros_like(v), log_w)
        return erase, (r, zero, k, v, zero)

    def _read_out(self, o: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        """(…, H, K) -> (…, D)."""
        bonus = (r * self.bonus * k).sum(-1, keepdim=True)
        return (ops.norm(o, self.norm, "scale") + bonus * ops.value(v, 3)).flatten(-2) * gate

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """α of the scan; of the layer W_o diag(g) (norm α + bonus) W_v shift, all pairs of D."""
        r, k, kappa = (coefficients[name] for name in ("query", "key", "erased"))
        w, by = coefficients["log gate"].exp(), coefficients["rate"] * kappa

        def scan(t: int) -> Tensor:
            return rows.erasing(r, k, w, kappa, by, packing, t)

        if part == "scan":
            return rows.each(steps, scan)
        return rows.each(steps, lambda t: self._layer_row(scan(t), coefficients, packing, t))

    def _layer_row(
        self, row: Tensor, coefficients: ops.Coefficients, packing: Packing, t: int
    ) -> Tensor:
        """(B, D · D, T), pairs of an output and an input, from the scan's (B, H, T)."""
        r, k, gate, scale = (coefficients[name][:, t] for name in ("query", "key", "gate", "scale"))
        read = gate[:, None] * self.out.weight  # (B, D, D)
        read = read.unflatten(2, self.shape)  # (B, D, H, K)
        value = self.maps[2].weight.unflatten(0, self.shape)  # (H, K, D)
        normed = read * self.norm.weight
        normed = (normed - normed.mean(-1, keepdim=True)) * scale[:, None]
        found = torch.einsum("bohk,hki,bht->boit", normed, value, row)
        bonus = (r * self.bonus * k).sum(-1)
        found[..., t] += torch.einsum("bohk,hki,bh->boi", read, value, bonus)
        found = found.flatten(1, 2)
        by = self.shift[2].repeat(len(self.rate_bias))  # of pairs, as their inputs
        taps = torch.stack([by, 1 - by], 1)
        row = rows.through_conv(found[:, :, None], taps, packing)[:, :, 0]
        return row.where(rows.visible(packing, t)[:, None], 0)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return coefficients["log gate"]
