"""Gated recurrent networks, GRU and LSTM, and a linear output: y_t = W h_t + b.

Their equations and sources stand in kernels/gated_scan.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.gated_marks import marked_scan, marked_step
from decision_s4.agents.backbones.initial import check_counts
from decision_s4.kernels.gated_scan import fits_triton, gated_scan, gated_step
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class GatedOptions:
    """Options of `gru` and `lstm`."""

    d_state: int = 64
    """Width of the hidden state, and of the LSTM's cell."""


class GatedNetwork(Mixer):
    """What both share. The state's parts (GRU: h; LSTM: h and c) are one (B, parts, d_state)."""

    Options = GatedOptions
    mixing: ClassVar = {"layer": "dense"}
    network: ClassVar[type[nn.GRU | nn.LSTM]]
    parts: ClassVar[int]

    def __init__(self, d_model: int, options: GatedOptions):
        super().__init__()
        check_counts(options, "d_state")
        self.rnn = self.network(d_model, options.d_state)
        self.out = nn.Linear(options.d_state, d_model)
        of_input, of_state, *biases = self.rnn.all_weights[0]
        nn.init.xavier_uniform_(of_input)
        for gate in of_state.split(options.d_state):
            nn.init.orthogonal_(gate)
        for bias in biases:
            nn.init.zeros_(bias)

    def train(self, mode: bool = True) -> "GatedNetwork":
        """As ever, but cuDNN has gradients in training mode only, which changes nothing else."""
        super().train(mode)
        self.rnn.train()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As ever, but a copy's weights lie in one piece again, as cuDNN wants them."""
        super().__setstate__(state)
        self.rnn.flatten_parameters()

    def can_be_recorded(self, device: torch.device) -> bool:
        return fits_triton(self.rnn, device)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        shape = (batch_size, self.parts, self.rnn.hidden_size)
        return torch.zeros(shape, dtype=self.out.weight.dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            x = ops.tap("layer.values", x.to(state.dtype))
            scan = marked_scan if ops.is_open() else gated_scan
            hidden, state = scan(x, self.rnn, state, packing)
        return self.out(ops.tap("layer.mixed", hidden)), state

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            step = marked_step if ops.is_open() else gated_step
            state = step(x.to(state.dtype), self.rnn, state)
        return self.out(state[:, 0]), state


def held(coefficients: ops.Coefficients, *names: str) -> list[Tensor]:
    """(B, T, H) each."""
    return [coefficients[name] for name in names]


@register("gru")
class GRU(GatedNetwork):
    """Gated recurrent unit: orthogonal recurrent matrices, zero biases."""

    network, parts = nn.GRU, 1

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return held(coefficients, "update gate")[0].log()

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """J = diag(z) + diag((1 − z) ρ r) U, G = diag((1 − z) ρ) W; ρ the ratio of the tanh."""
        names = ("reset gate", "update gate", "candidate")
        r, z, ratio = held(coefficients, *names)
        W, U = (weight.chunk(3)[2] for weight in self.rnn.all_weights[0][:2])
        gain = (1 - z) * ratio

        def transition(t: int) -> Tensor:
            return torch.diag_embed(z[:, t]) + (gain * r)[:, t, :, None] * U

        def inputs(t: int) -> Tensor:
            return gain[:, t, :, None] * W

        ones = torch.ones_like(z)
        return rows.each(steps, lambda t: rows.recurrent(transition, inputs, ones, packing, t))


@register("lstm")
class LSTM(GatedNetwork):
    """Long short-term memory: as `GRU`, the forget gate's bias 1 (Jozefowicz et al. 2015)."""

    network, parts = nn.LSTM, 2

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return held(coefficients, "forget gate")[0].log()

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """Of the cell: J = diag(f) + diag(i ρ) U diag(o₋₁ κ₋₁), G = diag(i ρ) W; h = o κ c.

        ρ and κ are the ratios of the candidate's and the cell's tanh.
        """
        names = ("input gate", "forget gate", "output gate", "candidate", "cell")
        i, f, o, ratio, cell = held(coefficients, *names)
        W, U = (weight.chunk(4)[2] for weight in self.rnn.all_weights[0][:2])
        gain, out = i * ratio, o * cell

        def transition(t: int) -> Tensor:
            from_hidden = gain[:, t, :, None] * U * out[:, t - 1, None]
            return torch.diag_embed(f[:, t]) + from_hidden

        def inputs(t: int) -> Tensor:
            return gain[:, t, :, None] * W

        return rows.each(steps, lambda t: rows.recurrent(transition, inputs, out, packing, t))

    def __init__(self, d_model: int, options: GatedOptions):
        super().__init__(d_model, options)
        bias = self.rnn.all_weights[0][2]
        nn.init.ones_(bias.data.split(options.d_state)[1])  # gates: i, f, g, o
