"""Gated linear attention layers: a matrix state a head, each key channel with a gate of its own.

    S_t = diag(α_t) S_{t−1} + k_t v_tᵀ,   o_t = S_tᵀ q_t

GLA (arXiv 2312.06635) and HGRN-2 (arXiv 2404.07904) differ in where gates and keys come from.
Shapes: H heads, K key and V value width of a head.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.envs.errors import UserError
from decision_s4.kernels.gated_linear import gated_linear, gated_linear_step
from decision_s4.kernels.packing import Packing

GAIN = 2**-2.5  # of the initial projections, after Xavier: as published for these layers
Gate = TypeVar("Gate", Tensor, None)  # of the outputs, or a layer has none


@dataclass(frozen=True)
class GatedLinearOptions:
    """Options that all of them share."""

    n_heads: int = 4
    """Heads H."""
    expand_k: float = 1.0
    """Queries and keys of all heads together, as a multiple of d_model."""
    expand_v: float = 1.0
    """Values of all heads together, as a multiple of d_model."""


@dataclass(frozen=True)
class GLAOptions(GatedLinearOptions):
    """Options of `gla`."""

    gate_rank: int = 16
    """Rank of the map from input to gates."""
    gate_temperature: float = 16.0
    """Gates are sigmoids to the power 1 / temperature: the higher, the slower they forget."""


class GatedLinearAttention(Mixer, Generic[Gate]):
    """What they share: a projection in, the recurrence, a projection out. State (B, H, K, V)."""

    Options = GatedLinearOptions
    recordable = True
    mixing: ClassVar = {"layer": "channels", "scan": "heads"}
    norm: nn.RMSNorm
    """Of the outputs, where a subclass has one."""

    def __init__(self, d_model: int, options: GatedLinearOptions):
        super().__init__()
        heads = options.n_heads
        check_counts(options, "n_heads")
        key, value = (
            head_width(name, getattr(options, name), d_model, heads)
            for name in ("expand_k", "expand_v")
        )
        self.shape = (heads, key, value)

    def _make_projections(self, d_model: int, *widths: int, bias: bool = False) -> None:
        """Input to parts of these widths, and all heads' values to output."""
        heads, _, value = self.shape
        self.widths = widths
        self.in_proj = nn.Linear(d_model, sum(widths), bias=bias)
        self.out_proj = nn.Linear(heads * value, d_model, bias=bias)
        with torch.no_grad():
            for part in (*self.in_proj.weight.split(widths), self.out_proj.weight):
                nn.init.xavier_uniform_(part, gain=GAIN)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        dtype = self.in_proj.weight.dtype
        return torch.zeros(batch_size, *self.shape, dtype=dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        parts = self._parts(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v, log_gate, out_gate = self._inputs(*parts)
            q, k, v, log_gate = _mark(q, k, v, log_gate)
            o, state = self._scan(q, k, v, log_gate, state, packing)
            y = ops.tap("layer.mixed", self._read_out(ops.tap("scan.mixed", o), out_gate))
        return self.out_proj(y), state

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """gate · norm · α, α the scan's."""
        q, k, log_gate = (coefficients[name] for name in ("query", "key", "log gate"))
        q, k = self._in_one_frame(q, k, packing)
        found = rows.each(steps, lambda t: rows.gated(q, k, log_gate, packing, t))
        if part == "scan":
            return found
        outputs = coefficients["norm"] * self.norm.weight
        outputs = outputs.expand(*q.shape[:2], *outputs.shape[2:]).flatten(2)
        by = coefficients.get("gate")
        found = found.repeat_interleave(self.shape[2], 1)
        return rows.scale(found, outputs if by is None else outputs * by, steps)

    def _in_one_frame(self, q: Tensor, k: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """Queries and keys as the recurrence weighs them."""
        return q, k

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor | None:
        return coefficients["log gate"]

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        parts = self._parts(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v, log_gate, out_gate = self._inputs(*parts)
            o, state = self._scan_step(q, k, v, log_gate, state)
            y = self._read_out(o, out_gate)
        return self.out_proj(y), state

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts of the projected input, in the state's type."""
        return self.in_proj(x).to(self.in_proj.weight.dtype).split(self.widths, dim=-1)

    def _heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Each (…, H · F) as (…, H, F)."""
        return tuple(part.unflatten(-1, (self.shape[0], -1)) for part in parts)

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Gate]:
        """q, k, v, log gates, each (…, H, K or V), and what `_read_out` wants besides."""
        raise NotImplementedError

    def _scan(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """The recurrence over all steps: outputs and the state after the last."""
        return gated_linear(q, k, v, log_gate, state, packing, ops.impl())

    def _scan_step(
        self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of it."""
        return gated_linear_step(q, k, v, log_gate, state)

    def _read_out(self, o: Tensor, out_gate: Gate) -> Tensor:
        """o (…, H, V) -> (…, H · V)."""
        raise NotImplementedError


@register("gla")
class GLA(GatedLinearAttention[Tensor]):
    """α = σ(W₂ W₁ x + b)^(1/τ);  out = W_o (RMSNorm(o) ⊙ silu(W_r x)) (section 4.4)."""

    Options = GLAOptions
    recurrence_parameters = ("gate_bias",)

    def __init__(self, d_model: int, options: GLAOptions):
        super().__init__(d_model, options)
        check_counts(options, "gate_rank")
        if not 0 < options.gate_temperature < math.inf:
            raise UserError(f"gate_temperature {options.gate_temperature} must be above 0")
        heads, key, value = self.shape
        keys, values = heads * key, heads * value
        self._make_projections(d_model, keys, keys, values, options.gate_rank, values)
        self.gate_up = nn.Parameter(torch.empty(keys, options.gate_rank))
        nn.init.xavier_uniform_(self.gate_up, gain=GAIN)
        self.gate_bias = nn.Parameter(torch.zeros(keys))
        self.temperature = options.gate_temperature
        self.norm = ops.RMSNorm(value, eps=1e-5)

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        q, k, v, gate, out_gate = parts
        gate = F.logsigmoid(F.linear(gate, self.gate_up, self.gate_bias)) / self.temperature
        q, k, v, gate = self._heads(q, k, v, gate)
        return q * self.shape[1] ** -0.5, k, v, gate, out_gate

    def _read_out(self, o: Tensor, out_gate: Tensor) -> Tensor:
        return ops.gate(
            ops.norm(o, self.norm, "norm").flatten(-2), ops.act(out_gate, "silu"), "gate"
        )


@register("hgrn2")
class HGRN2(GatedLinearAttention[None]):
    """α = l + (1 − l) σ(W_f x), k = 1 − α, q = silu(W_q x);  out = W_o RMSNorm(o) (section 3.2).

    The lower bound l of a layer's gates rises with its depth, so that deeper layers remember
    longer: at first l = depth / layers, 0 in the first layer. Published, all are one cumulative
    softmax; here each is trained alone.
    """

    Options = GatedLinearOptions

    def __init__(self, d_model: int, options: GatedLinearOptions, lower_bound: float = 0.0):
        super().__init__(d_model, options)
        heads, key, value = self.shape
        self._make_projections(d_model, heads * key, heads * key, heads * value)
        self.norm = ops.RMSNorm(heads * value, eps=1e-5)
        self.lower_bound_logit = None
        if lower_bound:
            logit = math.log(lower_bound) - math.log1p(-lower_bound)
            self.lower_bound_logit = nn.Parameter(torch.full((heads * key,), logit))
            self.recurrence_parameters = ("lower_bound_logit",)

    @classmethod
    def layers(cls, d_model: int, options: Any, n_layers: int) -> list[Mixer]:
        return [cls(d_model, options, depth / n_layers) for depth in range(n_layers)]

    def _inputs(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, forget, v = parts
        log_gate, k = F.logsigmoid(forget), torch.sigmoid(-forget)
        if self.lower_bound_logit is not None:
            log_rest = F.logsigmoid(-self.lower_bound_logit)
            log_gate = torch.logaddexp(F.logsigmoid(self.lower_bound_logit), log_rest + log_gate)
            k = log_rest.exp() * k
        q, k, v, log_gate = self._heads(ops.act(q, "silu"), k, v, log_gate)
        return q, k, v, log_gate, None

    def _read_out(self, o: Tensor, out_gate: None) -> Tensor:
        return ops.norm(o.flatten(-2), self.norm, "norm")


def _mark(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What weighs, and the values that are weighed."""
    q, k = ops.coefficient("query", q, factors=3), ops.coefficient("key", k, factors=3)
    v = ops.tap("scan.values", ops.tap("layer.values", v))
    return q, k, ops.value(v, 3), ops.coefficient("log gate", log_gate)


def head_width(name: str, expand: float, d_model: int, heads: int) -> int:
    """Width of one head where all of them are expand · d_model wide."""
    width = expand * d_model / heads
    if not (math.isfinite(width) and width >= 1 and width == int(width)):
        raise UserError(
            f"{name} {expand} · d_model {d_model} / n_heads {heads} = {width:g} channels a head; "
            "it must be a whole number, at least 1"
        )
    return int(width)
