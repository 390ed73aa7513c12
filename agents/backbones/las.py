"""Local and smooth attention: scores fade with distance, values are averaged over neighbours.

    y_t = Σ_s softmax_s(e^{−α (t − s)} q_t · k_s / √d) v̄_s,   v̄_s = (v_s + … + v_{s−P+1}) / P

LaS attention of Zimerman and Wolf, "Viewing Transformers Through the Lens of Long Convolutions
Layers", ICML 2024, PMLR 235:62815. There the average is centred and looks ahead, here it is not.
A faded score is 0, not −∞: far steps keep an even share. α, one a head, begins as ALiBi's slopes
2^(−8 h / H); there it stays, here it is trained.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.attention import scores
from decision_s4.agents.backbones.base import State, register
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.short_conv import short_conv, short_conv_step


@dataclass(frozen=True)
class LocalSmoothOptions(TransformerOptions):
    """Options of `las`."""

    positions: Literal["rotary", "none"] = "none"
    """"rotary" adds rotary positions to what distance tells already."""
    smoothing: int = 4
    """Steps P that a value is averaged over."""


@register("las")
class LocalSmoothAttention(Transformer):
    """The state is (ring of the last W − 1 keys and averaged values, last P − 1 values)."""

    Options = LocalSmoothOptions
    options: LocalSmoothOptions
    recurrence_parameters = ("log_slope",)

    def __init__(self, d_model: int, options: LocalSmoothOptions):
        super().__init__(d_model, options)
        check_counts(options, "smoothing")
        head = torch.arange(1, self.heads + 1)
        self.log_slope = nn.Parameter(torch.exp2(-8 * head / self.heads).log())

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        shape = (batch_size, self.heads * self.width, self.options.smoothing - 1)
        past = torch.zeros(shape, dtype=self.out.weight.dtype, device=device)
        return super().initial_state(batch_size, device), past

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        q, k, v = self._project(x)
        ring, past = state
        v = ops.tap("layer.values", v).flatten(2).to(past.dtype)
        v, past = short_conv(v, self._average(), None, past, packing, ops.impl())
        y, ring = self._over_window(q, k, v.unflatten(2, q.shape[2:]).to(q.dtype), ring, packing)
        return self.out(ops.tap("layer.mixed", y).flatten(2)), (ring, past)

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """Attention weights · the average."""
        found = super().closed_rows(part, coefficients, packing, steps)
        return rows.through_conv(found, self._average()[:: self.width], packing)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        q, k, v = self._project(x[:, None])
        ring, past = state
        v, past = short_conv_step(v.flatten(1).to(past.dtype), self._average(), None, past)
        v = v.view_as(q).to(q.dtype)
        y, ring = self._over_ring(q, k, v, ring, constants)
        return self.out(y[:, 0]), (ring, past)

    def _average(self) -> Tensor:
        """(D, P) weights."""
        taps = self.options.smoothing
        return self.out.weight.new_full((self.heads * self.width, taps), 1 / taps)

    def weigh(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(k.shape[-2], dtype=self.log_slope.dtype, device=k.device)
        age = (place[-q.shape[-2] :, None] - place).clamp(min=0)
        fade = torch.exp(-self.log_slope.exp()[:, None, None] * age)
        return torch.softmax((fade * scores(q, k)).masked_fill(~mask, float("-inf")), -1)
