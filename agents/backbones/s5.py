"""S5: one linear state-space system for all channels together, diagonal, zero-order hold.

    x'(t) = Λ x(t) + B u(t),   y(t) = 2 Re(C x(t)) + d ∘ u(t),   out = GELU(y) ∘ σ(W GELU(y))

Smith, Warrington, Linderman, "Simplified State Space Layers for Sequence Modeling", arXiv
2208.04933, sections 3 and 4, with its weighted sigmoid gate. One of each conjugate pair is held,
each with a time step of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import register
from decision_s4.agents.backbones.hippo import normal_plus_low_rank
from decision_s4.agents.backbones.initial import check_counts, check_range, log_uniform
from decision_s4.agents.backbones.mimo import MimoStateSpace
from decision_s4.envs.errors import UserError


@dataclass(frozen=True)
class S5Options:
    """Options of `s5`."""

    d_state: int = 64
    """Size P of the state that all channels share; a multiple of 2 · blocks, as poles pair up."""
    blocks: int = 1
    """Initial poles are those of HiPPO-LegS of size d_state / blocks, `blocks` times over."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """Time steps are drawn log-uniformly from [dt_min, dt_max]; 1 / dt is the horizon in steps."""


@register("s5")
class S5(MimoStateSpace):
    """Poles of HiPPO-LegS's normal part, a time step a pole."""

    Options = S5Options
    share = 2
    recurrence_parameters = (
        "log_dt",
        "log_decay",
        "frequency",
        *MimoStateSpace.recurrence_parameters,
    )

    def __init__(self, d_model: int, options: S5Options):
        _check(options)
        # Published: B = V* B', B' real normal. V's columns, being eigenvectors of a real skew
        # matrix, are orthonormal, also to their conjugates: such a B is complex normal, as here.
        super().__init__(d_model, options.d_state // 2)
        poles = torch.from_numpy(normal_plus_low_rank(options.d_state // options.blocks).a)
        poles = poles.repeat(options.blocks).to(torch.view_as_complex(self.b).dtype)
        self.log_dt = nn.Parameter(log_uniform(len(poles), options.dt_min, options.dt_max))
        self.log_decay = nn.Parameter((-poles.real).log())
        self.frequency = nn.Parameter(poles.imag.clone())
        self.out = nn.Linear(d_model, d_model)

    def discretise(self) -> tuple[Tensor, Tensor]:
        """Ā = e^{dt Λ}, B̄ = (e^{dt Λ} − 1) / Λ · B."""
        poles = torch.complex(-self.log_decay.exp(), self.frequency)
        exponent = poles * self.log_dt.exp()
        gain = torch.expm1(exponent) / poles
        return torch.exp(exponent), gain[:, None] * torch.view_as_complex(self.b)

    def mix_channels(self, y: Tensor) -> Tensor:
        y = ops.act(y, "gelu")
        return y * ops.coefficient("output gate", torch.sigmoid(self.out(y)))


def _check(options: S5Options) -> None:
    check_counts(options, "blocks")
    if options.d_state < 2 or options.d_state % (2 * options.blocks):
        raise UserError(
            f"d_state {options.d_state} must be a multiple of 2 · blocks ({2 * options.blocks}), "
            "as poles pair up"
        )
    check_range(options, "dt_min", "dt_max")
