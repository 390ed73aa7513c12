"""gated_scan as the equation, step by step: the oracle of the fast paths, and acting's step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from decision_s4.kernels.packing import Packing


def step(x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor) -> Tensor:
    """One step: x (B, D), state (B, parts, H) -> new state, whose part 0 is the output."""
    w, u, b, c = network.all_weights[0]  # of x, of h; the bias of each
    if isinstance(network, nn.LSTM):
        return torch.stack(torch.lstm_cell(x, state.unbind(1), w, u, b, c), dim=1)
    return torch.gru_cell(x, state[:, 0], w, u, b, c)[:, None]


def scan(
    x: Tensor,
    network: nn.GRU | nn.LSTM,
    state: Tensor,
    packing: Packing,
    step: Callable[[Tensor, nn.GRU | nn.LSTM, Tensor], Tensor] = step,
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`; `step` is the equation."""
    valid = torch.ones_like(packing.start) if packing.valid is None else packing.valid
    begins, holes = packing.start.any(0).tolist(), (~valid).any(0).tolist()
    x = torch.where(valid[..., None], x, torch.zeros_like(x))  # NaN in a hole would reach gradients
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        before = state
        if begins[t]:
            before = torch.where(packing.start[:, t, None, None], torch.zeros_like(state), state)
        after = step(x_t, network, before)
        state = torch.where(valid[:, t, None, None], after, state) if holes[t] else after
        outputs.append(after[:, 0])
    hidden = torch.stack(outputs, dim=1)
    return torch.where(valid[..., None], hidden, torch.zeros_like(hidden)), state
