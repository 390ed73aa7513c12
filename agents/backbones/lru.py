"""The linear recurrent unit: a diagonal complex recurrence, stable by its parametrisation.

    x_t = λ ∘ x_{t−1} + γ ∘ (B u_t),   y_t = Re(C x_t) + d ∘ u_t,   out = GLU(W GELU(y))
    λ = exp(−e^ν + i e^θ),   γ = √(1 − |λ|²)

Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting Recurrent Neural Networks for
Long Sequences", arXiv 2303.06349, section 3 and appendix A. There γ is trained from that value
on; here it stays tied to λ, so that states keep their scale (B can learn any other).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import register
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.agents.backbones.mimo import MimoStateSpace
from decision_s4.envs.errors import UserError


@dataclass(frozen=True)
class LRUOptions:
    """Options of `lru`."""

    d_state: int = 64
    """Number P of complex states, shared by all channels."""
    r_min: float = 0.9
    r_max: float = 0.999
    """Initial poles are uniform on the ring r_min <= |λ| <= r_max; 1 / (1 − |λ|) is the horizon in
    steps."""
    max_phase: float = 2 * math.pi
    """Initial phases are uniform in (0, max_phase], radians a step."""


@register("lru")
class LRU(MimoStateSpace):
    """P complex states, ring initialisation, gated linear output."""

    Options = LRUOptions
    recurrence_parameters = ("log_decay", "log_phase", *MimoStateSpace.recurrence_parameters)

    def __init__(self, d_model: int, options: LRUOptions):
        _check(options)
        super().__init__(d_model, options.d_state)
        low, high = options.r_min**2, options.r_max**2
        area, turn = 1 - torch.rand(2, options.d_state)  # in (0, 1]: a logarithm follows
        self.log_decay = nn.Parameter((-0.5 * (low + (high - low) * area).log()).log())
        self.log_phase = nn.Parameter((options.max_phase * turn).log())
        self.out = nn.Linear(d_model, 2 * d_model)

    def discretise(self) -> tuple[Tensor, Tensor]:
        decay = self.log_decay.exp()
        poles = torch.exp(torch.complex(-decay, self.log_phase.exp()))
        gamma = (-torch.expm1(-2 * decay)).sqrt()
        return poles, gamma[:, None] * torch.view_as_complex(self.b)

    def mix_channels(self, y: Tensor) -> Tensor:
        y = self.out(ops.act(y, "gelu"))
        if not ops.is_open():
            return F.glu(y, dim=-1)
        signal, by = y.chunk(2, dim=-1)
        return signal * ops.coefficient("output gate", torch.sigmoid(by))


def _check(options: LRUOptions) -> None:
    check_counts(options, "d_state")
    if not 0 <= options.r_min <= options.r_max < 1 or options.r_max == 0:
        raise UserError(
            f"r_min {options.r_min} and r_max {options.r_max} need 0 <= r_min <= r_max, "
            "0 < r_max < 1"
        )
    if not 0 < options.max_phase <= 2 * math.pi:
        raise UserError(f"max_phase {options.max_phase} must be in (0, 2π], radians a step")
