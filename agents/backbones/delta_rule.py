"""Delta-rule layers: linear attention that corrects what it stored at a key.

    S_t = (I − β_t k_t k_tᵀ) diag(α_t) S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t
    q, k, v = silu(conv(W x)), q and k of length 1;   β = β_max σ(W_β x)

DeltaNet (arXiv 2406.06484), Gated DeltaNet (arXiv 2412.06464) and Kimi Delta Attention (arXiv
2510.26692) differ in the decay α: none, one a head, one a key channel. With β_max = 2 a step may
turn the stored value round, which parity needs (arXiv 2411.12537).
Shapes: H heads, K key and V value width of a head, W taps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.gated_linear import GAIN, head_width
from decision_s4.agents.backbones.initial import (
    check_counts,
    check_range,
    depthwise,
    time_step_bias,
)
from decision_s4.envs.errors import UserError
from decision_s4.kernels.delta_rule import delta_rule, delta_rule_step, fused
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import short_conv, short_conv_step

EPS = 1e-6  # under the root of a squared length, as in flash-linear-attention


@dataclass(frozen=True)
class DeltaRuleOptions:
    """Options that all of them share."""

    n_heads: int = 4
    """Heads H."""
    expand_k: float = 1.0
    """Queries and keys of all heads together, as a multiple of d_model."""
    expand_v: float = 1.0
    """Values of all heads together, as a multiple of d_model."""
    d_conv: int = 4
    """Taps W of the convolution of queries, keys and values."""
    beta_max: float = 1.0
    """Largest β, at most 2: a step leaves 1 − β of what is stored at its key."""


@dataclass(frozen=True)
class GatedDeltaRuleOptions(DeltaRuleOptions):
    """Options of `gated-deltanet`."""

    dt_min: float = 0.001
    dt_max: float = 0.1
    """Time steps begin log-uniform in [dt_min, dt_max], as Mamba-2's."""


@dataclass(frozen=True)
class KimiDeltaOptions(GatedDeltaRuleOptions):
    """Options of `kda`."""

    gate_rank: int = 16
    """Rank of the maps from input to decays and to output gates."""


@register("deltanet")
class DeltaNet(Mixer):
    """No decay; out = W_o RMSNorm(o). State: (last inputs of the convolution, S (B, H, K, V))."""

    Options = DeltaRuleOptions
    mixing: ClassVar = {"layer": "channels", "scan": "heads"}

    def __init__(self, d_model: int, options: DeltaRuleOptions):
        super().__init__()
        self.shape = _check(d_model, options)
        heads, key, value = self.shape
        self.beta_max = options.beta_max
        self.convolved = (heads * key, heads * key, heads * value)
        self.widths = (sum(self.convolved), heads, *self._more_widths(d_model, options))
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        nn.init.xavier_uniform_(self.in_proj.weight, gain=GAIN)
        self.conv_weight = depthwise((self.widths[0], options.d_conv), options.d_conv)
        self.norm = ops.RMSNorm(value, eps=1e-5)
        self.out_proj = nn.Linear(heads * value, d_model, bias=False)
        nn.init.xavier_uniform_(self.out_proj.weight, gain=GAIN)

    def _more_widths(self, d_model: int, options: Any) -> tuple[int, ...]:
        """Of what else is projected from the input: for the decay, for the output gate."""
        return ()

    def _log_gate(self, beta: Tensor, *more: Tensor) -> Tensor:
        """log α (…, H, 1 or K)."""
        return torch.zeros_like(beta)

    def _read_out(self, o: Tensor, *more: Tensor) -> Tensor:
        """o (…, H, V) -> (…, H · V)."""
        return ops.norm(o, self.norm, "norm").flatten(-2)

    def can_be_recorded(self, device: torch.device) -> bool:
        return fused(self.shape[1], next(self.parameters()).dtype, device)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        channels, taps = self.conv_weight.shape
        return tuple(
            torch.zeros(batch_size, *shape, dtype=self.conv_weight.dtype, device=device)
            for shape in ((channels, taps - 1), self.shape)
        )

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        qkv, *more = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            if ops.is_open():
                v = ops.tap("layer.values", qkv[..., -self.convolved[2] :])
                qkv = torch.cat([qkv[..., : -self.convolved[2]], v], dim=-1)
            qkv, conv = short_conv(qkv, self.conv_weight, None, state[0], packing, ops.impl())
            q, k, w, v, log_gate = self._inputs(qkv, *more)
            v = ops.value(ops.tap("scan.values", v), 3)
            o, S = delta_rule(q, k, w, v, log_gate, state[1], packing, ops.impl())
            y = ops.tap("layer.mixed", self._read_out(ops.tap("scan.mixed", o), *more[1:]))
        return self.out_proj(y), (conv, S)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        qkv, *more = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, conv = short_conv_step(qkv, self.conv_weight, None, state[0])
            q, k, w, v, log_gate = self._inputs(qkv, *more)
            o, S = delta_rule_step(q, k, w, v, log_gate, state[1])
            y = self._read_out(o, *more[1:])
        return self.out_proj(y), (conv, S)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts of the projected input, in the state's type."""
        return self.in_proj(x).to(self.conv_weight.dtype).split(self.widths, dim=-1)

    def _inputs(
        self, qkv: Tensor, beta: Tensor, *more: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, β k, v and log α, each (…, H, …), the coefficients marked."""
        q, k, v = (
            each.unflatten(-1, (self.shape[0], -1))
            for each in ops.act(qkv, "silu", "activation").split(self.convolved, dim=-1)
        )
        beta = self.beta_max * torch.sigmoid(beta)[..., None]
        q = ops.coefficient("query", unit(q, "query length"), factors=3)
        k = ops.coefficient("key", unit(k, "key length"), factors=3)
        log_gate = ops.coefficient("log gate", self._log_gate(beta, *more))
        return q, k, ops.coefficient("beta", beta) * k, v, log_gate


class GatedDelta(DeltaNet):
    """Decays as Mamba-2's: log α = −e^A softplus(W x + b)."""

    recurrence_parameters = ("A_log", "dt_bias")

    def _make_decays(self, options: GatedDeltaRuleOptions, *shape: int) -> None:
        """A one a head, uniform in [1, 16]; b so that time steps begin as the options say."""
        self.A_log = nn.Parameter(torch.empty(shape[0]).uniform_(1, 16).log())
        self.dt_bias = time_step_bias(shape, options.dt_min, options.dt_max)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return coefficients["log gate"]


@register("gated-deltanet")
class GatedDeltaNet(GatedDelta):
    """One decay a head;  out = W_o (RMSNorm(o) ⊙ silu(W_g x))."""

    Options = GatedDeltaRuleOptions

    def __init__(self, d_model: int, options: GatedDeltaRuleOptions):
        super().__init__(d_model, options)
        self._make_decays(options, self.shape[0])

    def _more_widths(self, d_model: int, options: GatedDeltaRuleOptions) -> tuple[int, ...]:
        return self.shape[0], self.convolved[2]

    def _log_gate(self, beta: Tensor, *more: Tensor) -> Tensor:
        decay, _ = more
        return (-self.A_log.exp() * F.softplus(decay + self.dt_bias))[..., None]

    def _read_out(self, o: Tensor, *more: Tensor) -> Tensor:
        _, out_gate = more
        return ops.gate(super()._read_out(o), ops.act(out_gate, "silu"), "gate")


@register("kda")
class KimiDeltaAttention(GatedDelta):
    """One decay a key channel, by a map of low rank;  out = W_o (RMSNorm(o) ⊙ σ(W₂ W₁ x))."""

    Options = KimiDeltaOptions

    def __init__(self, d_model: int, options: KimiDeltaOptions):
        super().__init__(d_model, options)
        heads, key, value = self.shape
        self._make_decays(options, heads, key)
        self.decay_up = nn.Linear(options.gate_rank, heads * key, bias=False)
        self.gate_up = nn.Linear(options.gate_rank, heads * value, bias=False)
        for layer in (self.decay_up, self.gate_up):
            nn.init.xavier_uniform_(layer.weight, gain=GAIN)

    def _more_widths(self, d_model: int, options: KimiDeltaOptions) -> tuple[int, ...]:
        check_counts(options, "gate_rank")
        return options.gate_rank, options.gate_rank

    def _log_gate(self, beta: Tensor, *more: Tensor) -> Tensor:
        low_rank, _ = more
        decay = self.decay_up(low_rank).unflatten(-1, self.shape[:2])
        return -self.A_log.exp()[:, None] * F.softplus(decay + self.dt_bias)

    def _read_out(self, o: Tensor, *more: Tensor) -> Tensor:
        _, out_gate = more
        by = ops.coefficient("gate", torch.sigmoid(self.gate_up(out_gate)))
        return super()._read_out(o) * by


def unit(x: Tensor, name: str) -> Tensor:
    """x (…, K) over its length; `name` is that of the held scale, for probes."""
    return x * ops.coefficient(name, (x.square().sum(-1, keepdim=True) + EPS).rsqrt())


def _check(d_model: int, options: DeltaRuleOptions) -> tuple[int, int, int]:
    """(H, K, V)."""
    check_counts(options, "n_heads", "d_conv")
    if not 0 < options.beta_max <= 2:
        raise UserError(f"beta_max {options.beta_max} must be above 0 and at most 2")
    if isinstance(options, GatedDeltaRuleOptions):
        check_range(options, "dt_min", "dt_max")
    key, value = (
        head_width(name, getattr(options, name), d_model, options.n_heads)
        for name in ("expand_k", "expand_v")
    )
    return options.n_heads, key, value
