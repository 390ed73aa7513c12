"""A long convolution of each channel by a sum of decaying waves, which is a diagonal system.

    y_t = Σ_s h(t − s) v_s,   h(t) = 2 Re Σ_n γ_n c_n λ_n^t,   γ = √(1 − |λ|²)

As Laughing Hyena (arXiv 2310.18780) makes Hyena's filters; γ, as in LRU (arXiv 2303.06349), keeps
states of slow poles to size. Shapes: D channels, S poles of each.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.initial import check_range, log_uniform
from decision_s4.kernels.lti_scan import System, lti_scan, lti_step
from decision_s4.kernels.packing import Packing


class ModalFilter(nn.Module):
    """State (B, D, S, 2). `options`: d_state S; |λ| begins with horizons log-uniform from
    horizon_min to horizon_max, in steps."""

    recurrence = ("log_rate", "frequency")

    def __init__(self, d_model: int, options: Any):
        super().__init__()
        shape = (d_model, options.d_state)
        self.log_rate = nn.Parameter(log_rates(shape, options))
        self.frequency = nn.Parameter(math.pi * torch.rand(shape))
        self.c = nn.Parameter(torch.randn(*shape, 2) / options.d_state)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros(batch_size, *self.c.shape, dtype=self.c.dtype, device=device)

    def constants(self) -> System:
        """The discrete system."""
        pole = torch.exp(torch.complex(-self.log_rate.exp(), self.frequency))
        gain = (-torch.expm1(-2 * self.log_rate.exp())).sqrt()
        return System(
            pole, torch.complex(gain, torch.zeros_like(gain)), torch.view_as_complex(self.c)
        )

    def forward(self, v: Tensor, state: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """v (B, T, D) -> (y (B, T, D), final state)."""
        return lti_scan(v, self.constants(), state, packing, ops.impl())

    def step(self, v: Tensor, state: Tensor, constants: System) -> tuple[Tensor, Tensor]:
        """v (B, D) -> (y (B, D), new state)."""
        return lti_step(v, constants, state)


def log_rates(shape: tuple[int, ...], options: Any) -> Tensor:
    """−log of horizons drawn log-uniformly. Raises UserError where the options' are no range."""
    check_range(options, "horizon_min", "horizon_max")
    return -log_uniform(shape, options.horizon_min, options.horizon_max)
