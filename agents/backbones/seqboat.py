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

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register, reset
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.agents.backbones.modal import ModalFilter
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
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
        check_counts(options, "d_state")
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
        active = ops.tap("decisions", self._active(p, packing))
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
        active = ops.tap("decisions", p > 0.5)
        attended, ring = self.unit.step(h, state[1], constants[1])
        ring = reset(state[1], active[:, 0], ring)
        return self._combine(h, p, active, attended), (modes, ring)

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """W (1 + p g α O V) r (filter + d): the step itself and each head are sources that the
        filter, run backwards, takes to what they read."""
        p, ratio, gate = (coefficients[name] for name in ("activity", "activation", "gate"))
        active = self._active(p, packing)
        among, inner = among_active(active[..., 0], packing)[0], coefficients.within("unit.0.")
        sources = self.unit.closed_rows("layer", inner, among, steps)  # (B, N, I, T)
        itself = torch.nn.functional.one_hot(steps, packing.steps).to(sources)
        sources = torch.cat([itself.expand(len(sources), 1, -1, -1), sources], 1)
        weight = torch.where(active, p * gate, 0)[:, steps]  # (B, I, D)
        found = torch.einsum(
            "binod,bnitd->bodit", self._to_outputs(weight), self._backwards(sources, ratio)
        )
        seen = torch.stack([rows.visible(packing, step) for step in steps.tolist()], 1)
        return found.flatten(1, 2).where(seen[:, None], 0)

    def _to_outputs(self, weight: Tensor) -> Tensor:
        """(B, I, 1 + N, D, D): what the layer makes of h, of the step itself and of each head."""
        W, heads = self.out.weight, self.unit.heads
        values = self.unit.queries_keys_values.weight.chunk(3)[2].unflatten(0, (heads, -1))
        out = self.unit.out.weight.unflatten(1, (heads, -1))
        attended = torch.einsum("dnw,nwj->ndj", out, values)
        own = W.expand(*weight.shape[:2], 1, -1, -1)
        return torch.cat([own, torch.einsum("od,bid,ndj->binoj", W, weight, attended)], 2)

    def _backwards(self, sources: Tensor, ratio: Tensor) -> Tensor:
        """(B, M, I, T, D): what each input adds to M sums of h, weighed by sources (B, M, I, T)."""
        z = sources[..., None] * ratio[:, None, None]
        flat = z.flatten(0, 2).flip(1)
        whole = Packing(torch.zeros(flat.shape[:2], dtype=torch.bool, device=z.device), None)
        y, _ = self.filter(flat, self.filter.initial_state(len(flat), z.device), whole)
        return y.flip(1).view_as(z) + self.d * z

    @staticmethod
    def _active(p: Tensor, packing: Packing) -> Tensor:
        return p > 0.5 if packing.valid is None else (p > 0.5) & packing.valid[..., None]

    def _decide(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """h (…, D) and p (…, 1) of the input and what the filter makes of it."""
        h = ops.act(y + self.d * x, "silu", "activation")
        return h, ops.coefficient("activity", torch.sigmoid(self.decide(h)))

    def _combine(self, h: Tensor, p: Tensor, active: Tensor, attended: Tensor) -> Tensor:
        gated = ops.gate(attended, ops.act(self.unit_gate(h), "silu"), "gate")
        return self.out(h + torch.where(active, p * gated, 0))


def among_active(active: Tensor, packing: Packing) -> tuple[Packing, Tensor]:
    """The episodes of the active steps (B, T) alone; and, by row, whether what the last of these
    left is over, as an episode has started since."""
    episode = packing.begins.cumsum(1)
    latest = episode.where(active, 0).cummax(1).values  # the episode of the last active step
    before = torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], 1)
    return Packing(active & (episode > before), active), episode[:, -1] > latest[:, -1]
