"""Almost-linear recurrent network: few units are nonlinear, so that its dynamics can be read.

    z_t = A z_{t−1} + (1 − A) W Φ(z_{t−1}) + C x_t + h,   out = W_o z_t

Φ is the identity on the first units and ReLU on the last P. Brenner et al., "Almost-Linear RNNs
Yield Highly Interpretable Symbolic Codes in Dynamical Systems Reconstruction", arXiv 2410.14240.
There A (diagonal) and W are free, and chaos is wanted. A memory must not explode over an episode:
here 0 < A < 1 and no row of W sums to more than 1 in absolute value, so that the largest difference
between two states never grows. Shapes: M units.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.envs.errors import UserError
from decision_s4.kernels.almost_linear import almost_linear, almost_linear_step, fused, ranks
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class AlmostLinearOptions:
    """Options of `al-rnn`."""

    d_state: int = 64
    """Units M."""
    n_relu: int = 16
    """Nonlinear units P."""
    decay_min: float = 0.5
    decay_max: float = 0.999
    """A begins with 1 / (1 − A), the horizon in steps, log-uniform between those of these two."""


@register("al-rnn")
class AlmostLinearRNN(Mixer):
    """The state is z (B, M)."""

    Options = AlmostLinearOptions
    recurrence_parameters = ("log_rate", "weight")

    def __init__(self, d_model: int, options: AlmostLinearOptions):
        super().__init__()
        _check(options)
        size, self.n_relu = options.d_state, options.n_relu
        slow, fast = (
            -torch.log(torch.tensor(decay)) for decay in (options.decay_max, options.decay_min)
        )
        self.log_rate = nn.Parameter(torch.lerp(slow.log(), fast.log(), torch.rand(size)))
        self.weight = nn.Parameter(torch.randn(size, size) / (2 * size))
        self.read_in = nn.Linear(d_model, size)
        self.read_out = nn.Linear(size, d_model)

    def can_be_recorded(self, device: torch.device) -> bool:
        return fused(self.weight, device)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        shape = (batch_size, len(self.log_rate))
        return torch.zeros(shape, dtype=self.log_rate.dtype, device=device)

    def constants(self) -> tuple[Tensor, Tensor]:
        """A (M,) and (1 − A) W (M, M)."""
        rate = self.log_rate.exp()
        weight = self.weight / self.weight.abs().sum(1, keepdim=True).clamp(min=1)
        return torch.exp(-rate), -torch.expm1(-rate)[:, None] * weight

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        u = self.read_in(x).to(state.dtype)
        with torch.autocast(x.device.type, enabled=False):
            arguments = u, *self.constants(), len(self.log_rate) - self.n_relu, state, packing
            if ops.is_open():
                z, state = ranks.scan(*arguments, bend=_marked_relu)
            else:
                z, state = almost_linear(*arguments)
        return self.read_out(z), state

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        """Of A alone: what W adds depends on which units are open."""
        return -self.log_rate.exp()

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        linear, (decay, weight) = len(self.log_rate) - self.n_relu, constants
        with torch.autocast(x.device.type, enabled=False):
            u = self.read_in(x.to(state.dtype))
            state = almost_linear_step(u, state, decay, weight, linear, _marked_relu)
        return self.read_out(state), state


def _marked_relu(z: Tensor) -> Tensor:
    return ops.act(z, "relu")


def _check(options: AlmostLinearOptions) -> None:
    size, low, high = options.d_state, options.decay_min, options.decay_max
    check_counts(options, "d_state")
    if not 0 <= options.n_relu <= size:
        raise UserError(f"n_relu {options.n_relu} must be between 0 and d_state {size}")
    if not 0 < low <= high < 1:
        raise UserError(f"decay_min {low} and decay_max {high} need 0 < decay_min <= decay_max < 1")
