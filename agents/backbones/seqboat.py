"""Sparse modular activation: a state-space layer decides which steps attention takes in.

    h = silu(filter(x) + d ⊙ x),   p = σ(w · h + b),   a step is active where p > 1/2
    out = W (h + p ⊙ silu(U h) ⊙ attention(h)) at active steps,   W h at the others

SeqBoat (Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197):
the active steps, moved together, are a sequence of their own, whose last W are attended to; the
factor p is what lets the decision learn. There the layer before is MEGA's moving average and the
unit shares one projection among its queries and keys; here they are `ModalFilter` and the heads of
`transformer`. In parallel attention costs what the active steps cost; a step costs the same always.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import Mixer, State, register, reset
from decision_s4.agents.backbones.modal import ModalFilter
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class SeqBoatOptions(TransformerOptions):
    """Options of `seqboat`; those of the attention are of active steps."""

    d_state: int = 16
    """Complex states a channel of the layer that decides."""
    horizon_min: float = 1.0
    horizon_max: float = 300.0
    """Its modes begin with horizons log-uniform between these, in steps."""


@register("seqboat")
class SeqBoat(Mixer):
    """The state is (that of the filter, ring of the last W − 1 active keys and values)."""

    Options = SeqBoatOptions
    recurrence_parameters = tuple(f"filter.{name}" for name in ModalFilter.recurrence)

    def __init__(self, d_model: int, options: SeqBoatOptions):
        super().__init__()
        if options.d_state < 1:
            raise UserError(f"d_state {options.d_state} must be at least 1")
        self.filter = ModalFilter(d_model, options)
        self.d = nn.Parameter(torch.randn(d_model))
        self.decide = nn.Linear(d_model, 1)
        self.unit = Transformer(d_model, options)
        self.unit_gate = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        return tuple(part.initial_state(batch_size, device) for part in (self.filter, self.unit))

    def constants(self) -> Any:
        return self.filter.constants(), self.unit.constants()

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        if packing.valid is not None:
            x = x.where(packing.valid[..., None], 0)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.d.dtype)
            y, modes = self.filter(x, state[0], packing)
            h, p = self._decide(x, y)
        active = p > 0.5 if packing.valid is None else (p > 0.5) & packing.valid[..., None]
        among, forgets = among_active(active[..., 0], packing)
        with ops.scope("unit", 0):
            attended, ring = self.unit(h, state[1], among)
        ring = reset(ring, forgets, self.unit.initial_state(len(x), x.device))
        return self._combine(h, p, active, attended), (modes, ring)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.d.dtype)
            y, modes = self.filter.step(x, state[0], constants[0])
            h, p = self._decide(x, y)
        active = p > 0.5
        attended, ring = self.unit.step(h, state[1], constants[1])
        ring = reset(state[1], active[:, 0], ring)
        return self._combine(h, p, active, attended), (modes, ring)

    def _decide(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """h (…, D) and p (…, 1) of the input and what the filter makes of it."""
        h = ops.act(y + self.d * x, "silu")
        return h, ops.coefficient("activity", torch.sigmoid(self.decide(h)))

    def _combine(self, h: Tensor, p: Tensor, active: Tensor, attended: Tensor) -> Tensor:
        gated = ops.gate(attended, ops.act(self.unit_gate(h), "silu"))
        return self.out(h + torch.where(active, p * gated, 0))


def among_active(active: Tensor, packing: Packing) -> tuple[Packing, Tensor]:
    """The episodes of the active steps (B, T) alone; and, by row, whether what the last of these
    left is over, as an episode has started since."""
    start = packing.start if packing.valid is None else packing.start & packing.valid
    episode = start.cumsum(1)
    latest = episode.where(active, 0).cummax(1).values  # the episode of the last active step
    before = torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], 1)
    return Packing(active & (episode > before), active), episode[:, -1] > latest[:, -1]
