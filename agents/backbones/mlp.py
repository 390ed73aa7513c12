"""A layer without memory, for control experiments: what does remembering buy?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import MEMORYLESS, Mixer, State, register
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class MlpOptions:
    """Options of `mlp`."""

    expansion: int = 4
    """Hidden width, as a multiple of d_model."""


@register("mlp", MEMORYLESS)
class Mlp(Mixer):
    """y_t = W₂ GELU(W₁ x_t + b₁) + b₂ of each step alone; the state is empty."""

    Options = MlpOptions
    recordable = True
    marked = True

    def __init__(self, d_model: int, options: MlpOptions):
        super().__init__()
        check_counts(options, "expansion")
        self.inner = nn.Linear(d_model, options.expansion * d_model)
        self.outer = nn.Linear(options.expansion * d_model, d_model)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        return ()

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        return self._mix_channels(x), state

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        return self._mix_channels(x), state

    def _mix_channels(self, x: Tensor) -> Tensor:
        return self.outer(ops.act(self.inner(x), "gelu"))
