"""Gated recurrent networks, GRU and LSTM, and a linear output: y_t = W h_t + b.

Their equations and sources stand in kernels/gated_scan.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.envs.errors import UserError
from decision_s4.kernels.gated_scan import gated_scan, gated_step
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class GatedOptions:
    """Options of `gru` and `lstm`."""

    d_state: int = 64
    """Width of the hidden state, and of the LSTM's cell."""


class GatedNetwork(Mixer):
    """What both share. The state's parts (GRU: h; LSTM: h and c) are one (B, parts, d_state)."""

    Options = GatedOptions
    network: ClassVar[type[nn.GRU | nn.LSTM]]
    parts: ClassVar[int]

    def __init__(self, d_model: int, options: GatedOptions):
        super().__init__()
        if options.d_state < 1:
            raise UserError(f"d_state {options.d_state} must be at least 1")
        self.rnn = self.network(d_model, options.d_state)
        self.out = nn.Linear(options.d_state, d_model)
        nn.init.xavier_uniform_(self.rnn.weight_ih_l0)
        for gate in self.rnn.weight_hh_l0.split(options.d_state):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def train(self, mode: bool = True) -> "GatedNetwork":
        """As ever, but cuDNN has gradients in training mode only, which changes nothing else."""
        super().train(mode)
        self.rnn.train()
        return self

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        shape = (batch_size, self.parts, self.rnn.hidden_size)
        return torch.zeros(shape, dtype=self.out.weight.dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            hidden, state = gated_scan(x.to(state.dtype), self.rnn, state, packing)
        return self.out(hidden), state

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            state = gated_step(x.to(state.dtype), self.rnn, state)
        return self.out(state[:, 0]), state


@register("gru")
class GRU(GatedNetwork):
    """Gated recurrent unit: orthogonal recurrent matrices, zero biases."""

    network, parts = nn.GRU, 1


@register("lstm")
class LSTM(GatedNetwork):
    """Long short-term memory: as `GRU`, the forget gate's bias 1 (Jozefowicz et al. 2015)."""

    network, parts = nn.LSTM, 2

    def __init__(self, d_model: int, options: GatedOptions):
        super().__init__(d_model, options)
        nn.init.ones_(self.rnn.bias_ih_l0.data.split(options.d_state)[1])  # gates: i, f, g, o
