"""Mamba: a diagonal state-space layer whose step, input and read-out depend on the input (S6).

    x, z = W_in u;   x ← silu(conv(x));   r, B, C = W_x x;   Δ = softplus(W_Δ r + b_Δ)
    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t,   y_t = C_t · h_t + D x_t
    out = W_out (y ⊙ silu(z))

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752,
section 3; initialisation as published. Shapes: E = expand · D inner channels, N states a channel,
R the rank of Δ, W taps.
"""

import math
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
from decision_s4.kernels.selective_scan import selective_scan, selective_scan_step
from decision_s4.kernels.short_conv import short_conv, short_conv_step


@dataclass(frozen=True)
class MambaOptions:
    """Options of `mamba`."""

    d_state: int = 16
    """Size N of each channel's state."""
    expand: int = 2
    """Inner channels E as a multiple of d_model."""
    d_conv: int = 4
    """Taps W of the convolution before the recurrence."""
    dt_rank: int = 0
    """Rank R of the map from inputs to time steps; 0 for d_model / 16, rounded up."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """Time steps begin log-uniform in [dt_min, dt_max]; 1 / (dt · n) is the horizon of state n."""


@register("mamba")
class Mamba(Mixer):
    """The state is (last inputs of the convolution (B, E, W − 1), h (B, E, N))."""

    Options = MambaOptions
    recordable = True
    recurrence_parameters = ("A_log", "dt_bias")
    mixing: ClassVar = {"layer": "channels", "scan": "channels"}

    def __init__(self, d_model: int, options: MambaOptions):
        super().__init__()
        _check(options)
        inner, size = options.expand * d_model, options.d_state
        rank = options.dt_rank or math.ceil(d_model / 16)
        self.widths = (rank, size, size)  # Δ, B, C
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv_weight = depthwise((inner, options.d_conv), options.d_conv)
        self.conv_bias = depthwise(inner, options.d_conv)
        self.x_proj = nn.Linear(inner, sum(self.widths), bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_bias = time_step_bias(inner, options.dt_min, options.dt_max)
        self.A_log = nn.Parameter(torch.arange(1.0, size + 1).log().repeat(inner, 1))  # S4D-real
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        inner, taps = self.conv_weight.shape
        return tuple(
            torch.zeros(batch_size, *shape, dtype=self.D.dtype, device=device)
            for shape in ((inner, taps - 1), self.A_log.shape)
        )

    def constants(self) -> Tensor:
        return -torch.exp(self.A_log)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        start, valid = packing.start, packing.valid
        if valid is not None:
            x, start = x.where(valid[..., None], 0), start & valid
        x, z = self._project(x)
        x = ops.tap("layer.values", x)
        with torch.autocast(x.device.type, enabled=False):
            x, conv = short_conv(x, self.conv_weight, self.conv_bias, state[0], packing, ops.impl())
        x = ops.act(x, "silu", "activation")
        delta, B, C = self._select(x)
        if valid is not None:
            delta = delta.where(valid[..., None], 0)  # then exp(Δ A) = 1 and Δ B x = 0
        scan = self._marked_scan if ops.is_open() else selective_scan
        y, ssm = scan(x, delta, self.constants(), B, C, self.D, z, state=state[1], start=start)
        return self.out_proj(ops.tap("layer.mixed", y)), (conv, ssm)

    def _marked_scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        **of: Any,
    ) -> tuple[Tensor, Tensor]:
        """`selective_scan`, for probes: what it fuses stands apart."""
        delta = ops.coefficient("step", delta)
        B, C = ops.coefficient("B", B, factors=3), ops.coefficient("C", C, factors=3)
        u = ops.tap("scan.values", u)
        y, ssm = selective_scan(ops.value(u, 3), delta, A, B, C, **of, impl="torch")
        y = ops.tap("scan.mixed", y) + D * u
        return ops.gate(y, ops.act(z, "silu"), "gate"), ssm

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """gate · (α + D) · activation · convolution, α the hidden attention."""
        delta, B, C = (coefficients[name] for name in ("step", "B", "C"))
        A = self.constants()
        found = rows.each(steps, lambda t: rows.selective(delta, A, B, C, packing, t))
        if part == "scan":
            return found
        ratio = coefficients["activation"].transpose(1, 2)[:, :, None]
        found = rows.add_skip(found, self.D, packing, steps) * ratio
        found = rows.through_conv(found, self.conv_weight, packing)
        return rows.scale(found, coefficients["gate"], steps)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return coefficients["step"][..., None] * self.constants()

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        x, z = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            x, conv = short_conv_step(x, self.conv_weight, self.conv_bias, state[0])
        x = ops.act(x, "silu")
        delta, B, C = self._select(x)
        y, ssm = selective_scan_step(x, delta, constants, B, C, self.D, z, state=state[1])
        return self.out_proj(y), (conv, ssm)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x and z (…, E), in the state's type."""
        return self.in_proj(x).to(self.D.dtype).chunk(2, dim=-1)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Δ (…, E), B and C (…, N), in the state's type."""
        rank, B, C = self.x_proj(x).split(self.widths, dim=-1)
        delta = F.softplus(self.dt_proj(rank).to(self.D.dtype) + self.dt_bias)
        return delta, B, C


def _check(options: MambaOptions) -> None:
    check_counts(options, "d_state", "expand", "d_conv")
    if options.dt_rank < 0:
        raise UserError(f"dt_rank {options.dt_rank} must be at least 1, or 0 for d_model / 16")
    check_range(options, "dt_min", "dt_max")
