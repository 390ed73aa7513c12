"""Hyena: gates between long convolutions, each with a filter of its own.

    v, x_1, …, x_N = conv(W_in u);   v ← x_i ⊙ (h_i ∗ v + d_i v), i = 1 … N;   out = W_out v

Poli et al., "Hyena Hierarchy", arXiv 2302.10866, section 3. Filters h_i, one a channel, are

    modal:     h(t) = 2 Re Σ_n c_n λ_n^t, a diagonal system: steps of fixed cost, no end to the past
    implicit:  h(t) = e^{−δ t} MLP(sin and cos of t), t < l_max, and 0 from there on, by definition

the former as in Laughing Hyena (arXiv 2310.18780), the latter as published, where no step beyond
l_max is seen either; acting then keeps the last l_max − 1 inputs of each filter.
Shapes: N convolutions (order), S states a channel, W taps of the short convolution.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.initial import check_counts, depthwise
from decision_s4.agents.backbones.modal import ModalFilter, log_rates
from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.envs.errors import UserError, nearest
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import short_conv, short_conv_step

FREQUENCIES = 8  # of the implicit filters' positions
HIDDEN = 32  # width of their MLP
Convolution = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class HyenaOptions:
    """Options of `hyena`."""

    filters: Literal["modal", "implicit"] = "modal"
    """How filters are made: see the equations."""
    order: int = 2
    """Long convolutions N, each followed by a gate."""
    d_state: int = 16
    """Complex states S of a modal filter."""
    l_max: int = 64
    """Length of an implicit filter, in steps."""
    d_conv: int = 3
    """Taps W of the convolution before."""
    horizon_min: float = 1.0
    horizon_max: float = 300.0
    """Modes and decays begin with horizons log-uniform between these, in steps."""


@register("hyena")
class Hyena(Mixer):
    """The state is (last inputs of the short convolution, that of each long one)."""

    Options = HyenaOptions
    recordable = True
    mixing: ClassVar = {"layer": "channels"}

    def __init__(self, d_model: int, options: HyenaOptions):
        super().__init__()
        _check(options)
        self.order = options.order
        self.in_proj = nn.Linear(d_model, (options.order + 1) * d_model)
        inner = self.in_proj.out_features
        self.conv_weight = depthwise((inner, options.d_conv), options.d_conv)
        self.filters = ModuleList(_filter(d_model, options) for _ in range(options.order))
        self.recurrence_parameters = tuple(
            f"filters.{i}.{name}" for i, each in enumerate(self.filters) for name in each.recurrence
        )
        self.d = nn.Parameter(torch.randn(options.order, d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        channels, taps = self.conv_weight.shape
        zeros = torch.zeros(
            batch_size, channels, taps - 1, dtype=self.conv_weight.dtype, device=device
        )
        return zeros, tuple(each.initial_state(batch_size, device) for each in self.filters)

    def constants(self) -> Any:
        return tuple(each.constants() for each in self.filters)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        x = self.in_proj(x).to(self.conv_weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if ops.is_open():
                v, gates = x.tensor_split([len(self.d[0])], dim=-1)
                x = torch.cat([ops.tap("layer.values", v), gates], dim=-1)
            x, short = short_conv(x, self.conv_weight, None, state[0], packing, ops.impl())
            convolutions = [partial(each, packing=packing) for each in self.filters]
            v, long = self._mix(x, state[1], convolutions)
        return self.out_proj(ops.tap("layer.mixed", v)), (short, long)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        x = self.in_proj(x).to(self.conv_weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x, short = short_conv_step(x, self.conv_weight, None, state[0])
            pairs = zip(self.filters, constants, strict=True)
            convolutions = [partial(each.step, constants=values) for each, values in pairs]
            v, long = self._mix(x, state[1], convolutions)
        return self.out_proj(v), (short, long)

    def _mix(
        self, x: Tensor, state: State, convolutions: Sequence[Convolution]
    ) -> tuple[Tensor, State]:
        """v from what the short convolution gave, and the state of each long one."""
        (v, *gates), after = x.chunk(self.order + 1, dim=-1), []
        parts = zip(convolutions, state, gates, self.d, strict=True)
        for convolution, before, gate, d in parts:
            y, new = convolution(v, before)
            v = ops.gate(y + d * v, gate)
            after.append(new)
        return v, tuple(after)


class ImplicitFilter(nn.Module):
    """A window of l_max inputs; state (B, D, l_max − 1)."""

    recurrence = ("log_rate",)

    def __init__(self, d_model: int, options: HyenaOptions):
        super().__init__()
        self.length = options.l_max
        self.log_rate = nn.Parameter(log_rates((d_model,), options))
        self.hidden = nn.Linear(2 * FREQUENCIES, HIDDEN)
        self.out = nn.Linear(HIDDEN, d_model)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        shape = (batch_size, len(self.log_rate), self.length - 1)
        return torch.zeros(shape, dtype=self.log_rate.dtype, device=device)

    def constants(self) -> Tensor:
        """(D, l_max) the filter, its newest tap last."""
        age = torch.arange(self.length, dtype=self.log_rate.dtype, device=self.log_rate.device)
        wave = torch.arange(1, FREQUENCIES + 1, dtype=age.dtype, device=age.device)
        angle = math.pi * age[:, None] * wave / self.length
        values = self.out(torch.sin(self.hidden(torch.cat([angle.cos(), angle.sin()], 1))))
        return (torch.exp(-age[:, None] * self.log_rate.exp()) * values).T.flip(1)

    def forward(self, v: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        return short_conv(v, self.constants(), None, state, packing, ops.impl())

    def step(self, v: Tensor, state: Tensor, constants: Tensor) -> tuple[Tensor, Tensor]:
        return short_conv_step(v, constants, None, state)


def _filter(d_model: int, options: HyenaOptions) -> ModalFilter | ImplicitFilter:
    return (ModalFilter if options.filters == "modal" else ImplicitFilter)(d_model, options)


def _check(options: HyenaOptions) -> None:
    if options.filters not in ("modal", "implicit"):
        near = nearest(options.filters, ("modal", "implicit"))
        raise UserError(f"filters '{options.filters}' is unknown{near}")
    check_counts(options, "order", "d_state", "l_max", "d_conv")
