"""Mamba-2: a selective state space layer with one input-dependent decay a head.

    z, x, B, C, Δ = W_in u;   x, B, C ← silu(conv(x, B, C));   Δ ← softplus(Δ + b_Δ)
    H_t = exp(Δ_t A) H_{t−1} + Δ_t x_t B_tᵀ,   y_t = H_t C_t + D x_t
    out = W_out RMSNorm(y ⊙ silu(z))

Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 7; initialisation as published.
Shapes: E = expand · D inner channels in H heads of P, N state size, W taps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.initial import (
    check_counts,
    check_range,
    depthwise,
    time_step_bias,
)
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import short_conv, short_conv_step
from decision_s4.kernels.ssd import ssd, ssd_step


@dataclass(frozen=True)
class Mamba2Options:
    """Options of `mamba2`."""

    d_state: int = 64
    """Size N of each channel's state."""
    expand: int = 2
    """Inner channels E as a multiple of d_model."""
    n_heads: int = 4
    """Heads H, each with a decay of its own; they share the inner channels evenly."""
    d_conv: int = 4
    """Taps W of the convolution before the recurrence."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """Time steps begin log-uniform in [dt_min, dt_max]."""
    a_min: float = 1.0
    a_max: float = 16.0
    """Decay rates −A begin uniform in [a_min, a_max]; 1 / (dt · −A) is the horizon in steps."""


@register("mamba2")
class Mamba2(Mixer):
    """The state is (last inputs of the convolution (B, E + 2N, W − 1), H (B, H, P, N))."""

    Options = Mamba2Options
    recordable = True
    recurrence_parameters = ("A_log", "dt_bias")
    mixing: ClassVar = {"layer": "channels", "scan": "heads"}

    def __init__(self, d_model: int, options: Mamba2Options):
        super().__init__()
        _check(d_model, options)
        inner, heads, size = options.expand * d_model, options.n_heads, options.d_state
        self.shape = (heads, inner // heads, size)
        self.widths = (inner, inner + 2 * size, heads)  # z; x, B and C; Δ
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv_weight = depthwise((self.widths[1], options.d_conv), options.d_conv)
        self.conv_bias = depthwise(self.widths[1], options.d_conv)
        self.dt_bias = time_step_bias(heads, options.dt_min, options.dt_max)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(options.a_min, options.a_max).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = ops.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        conv = (*self.conv_weight.shape[:1], self.conv_weight.shape[1] - 1)
        return tuple(
            torch.zeros(batch_size, *shape, dtype=self.D.dtype, device=device)
            for shape in (conv, self.shape)
        )

    def constants(self) -> Tensor:
        return -torch.exp(self.A_log)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        z, xBC, dt = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            if ops.is_open():
                x, BC = xBC.tensor_split([self.widths[0]], dim=-1)
                xBC = torch.cat([ops.tap("layer.values", x), BC], dim=-1)
            xBC, conv = short_conv(
                xBC, self.conv_weight, self.conv_bias, state[0], packing, ops.impl()
            )
            x, B, C = self._split(xBC)
            dt, x = ops.coefficient("step", dt), ops.tap("scan.values", x)
            B, C = ops.coefficient("B", B, factors=3), ops.coefficient("C", C, factors=3)
            of = state[1], packing, ops.impl()
            y, ssm = ssd(ops.value(x, 3), dt, self.constants(), B, C, *of)
            y = ops.tap("layer.mixed", self._gate(ops.tap("scan.mixed", y), x, z))
        return self.out_proj(y), (conv, ssm)

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """norm · gate · (α + D) · activation · convolution."""
        delta, B, C = (coefficients[name].unsqueeze(-1) for name in ("step", "B", "C"))
        B, C = (each.transpose(2, 3) for each in (B, C))  # (B, T, 1, N): one for all heads
        decay = delta * self.constants()[:, None]
        found = rows.each(steps, lambda t: rows.gated(C, delta * B, decay, packing, t))
        if part == "scan":
            return found
        inner, width = self.widths[0], self.shape[1]
        ratio = coefficients["activation"][..., :inner].transpose(1, 2)[:, :, None]
        found = rows.add_skip(found, self.D, packing, steps).repeat_interleave(width, 1) * ratio
        found = rows.through_conv(found, self.conv_weight[:inner], packing)
        outputs = coefficients["gate"] * coefficients["norm"] * self.norm.weight
        return rows.scale(found, outputs, steps)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return coefficients["step"] * self.constants()

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        z, xBC, dt = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            xBC, conv = short_conv_step(xBC, self.conv_weight, self.conv_bias, state[0])
            x, B, C = self._split(xBC)
            y, ssm = ssd_step(x, dt, constants, B, C, state[1])
            y = self._gate(y, x, z)
        return self.out_proj(y), (conv, ssm)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (…, E), x with B and C (…, E + 2N), Δ (…, H), in the state's type."""
        z, xBC, dt = self.in_proj(x).to(self.D.dtype).split(self.widths, dim=-1)
        return z, xBC, F.softplus(dt + self.dt_bias)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """silu, then x (…, H, P), B and C (…, N)."""
        heads, width, size = self.shape
        x, B, C = ops.act(xBC, "silu", "activation").split([heads * width, size, size], dim=-1)
        return x.unflatten(-1, (heads, width)), B, C

    def _gate(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        y = (y + self.D[:, None] * x).flatten(-2)
        return ops.norm(ops.gate(y, ops.act(z, "silu"), "gate"), self.norm, "norm")


def _check(d_model: int, options: Mamba2Options) -> None:
    check_counts(options, "d_state", "expand", "n_heads", "d_conv")
    if options.expand * d_model % options.n_heads:
        raise UserError(
            f"n_heads {options.n_heads} must divide expand · d_model = {options.expand * d_model}"
        )
    check_range(options, "dt_min", "dt_max")
    check_range(options, "a_min", "a_max")
