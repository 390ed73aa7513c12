"""GRU and LSTM as probes read them: gates marked, all steps at once (see chain.py).

Gates only weigh: all relevance goes to the signal, as in Arras et al., "Explaining and Interpreting
LSTMs", arXiv 1909.12114. Shapes: B rows, T steps, H width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones import chain, ops
from decision_s4.kernels.gated_scan import gated_scan
from decision_s4.kernels.packing import Packing


def marked_scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """`gated_scan`, for probes: its values, and the gradients that rules ask for."""
    if packing.valid is not None:
        x = x.where(packing.valid[..., None], 0)
    f, weights = _marked_update(network), _of_state(network)
    from_input = _from_input(x, network)
    if ops.is_held():
        nothing = state.new_zeros(*x.shape[:2], *state.shape[1:])
        after, links = chain.own_steps(from_input, nothing, weights, packing, f)
        states = chain.linear_states(after.detach(), links, state.detach())
        states = chain.Joined.apply(after, state, states, links)
    else:
        before, states = _states(x, from_input, network, state, packing)
        if torch.is_grad_enabled():
            after, links = chain.own_steps(from_input, before, weights, packing, f)
            states = chain.Joined.apply(after, state, states, links)
        else:
            f(from_input, F.linear(before[:, :, 0], *weights), before)  # for its marks
    hidden = states[:, :, 0]
    if packing.valid is not None:
        hidden = hidden.where(packing.valid[..., None], 0)
    return hidden, states[:, -1]


@torch.no_grad()
def _states(
    x: Tensor, from_input: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """(B, T, parts, H) before and after each step."""
    hidden, _ = gated_scan(x, network, state, packing)
    before, after = _around(hidden, state[:, 0], packing)
    if not isinstance(network, nn.LSTM):
        return before[:, :, None], after[:, :, None]
    from_state = F.linear(before, *_of_state(network))
    i, f, g, _ = (from_input + from_state).chunk(4, -1)
    keep = torch.sigmoid(f).where(~packing.begins[..., None], 0)
    c = _sums(keep, i.sigmoid() * g.tanh(), state[:, 1], packing.valid)
    cells = _around(c, state[:, 1], packing)
    before, after = (torch.stack(pair, 2) for pair in zip((before, after), cells, strict=True))
    return before, after


def _sums(keep: Tensor, new: Tensor, c: Tensor, valid: Tensor | None) -> Tensor:
    """c_t = keep_t c_{t−1} + new_t, (B, T, H)."""
    if valid is not None:
        keep, new = keep.where(valid[..., None], 1), new.where(valid[..., None], 0)
    found = []
    for keep_t, new_t in zip(keep.unbind(1), new.unbind(1), strict=True):
        c = torch.addcmul(new_t, keep_t, c)
        found.append(c)
    return torch.stack(found, 1)


def _around(x: Tensor, first: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """What x (B, T, H) of valid steps and `first` before them were before and after each step."""
    every = torch.cat([first[:, None], x], 1)
    if packing.valid is not None:
        place = torch.arange(1, packing.steps + 1, device=x.device).where(packing.valid, 0)
        latest = F.pad(place.cummax(1).values, (1, 0))
        every = every.gather(1, latest[..., None].expand_as(every))
    return every[:, :-1].where(~packing.begins[..., None], 0), every[:, 1:]


def marked_step(x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor) -> Tensor:
    """`gated_step`, for probes."""
    from_state = F.linear(state[:, 0], *_of_state(network))
    return _marked_update(network)(_from_input(x, network), from_state, state)


def _from_input(x: Tensor, network: nn.GRU | nn.LSTM) -> Tensor:
    """What all gates take from the input, of all steps at once."""
    weight, _, bias, _ = network.all_weights[0]
    return F.linear(x, weight, bias)


def _of_state(network: nn.GRU | nn.LSTM) -> tuple[Tensor, Tensor]:
    """The weight and bias of what all gates take from the state."""
    _, weight, _, bias = network.all_weights[0]
    return weight, bias


def _marked_update(network: nn.GRU | nn.LSTM) -> chain.Update:
    return _marked_lstm if isinstance(network, nn.LSTM) else _marked_gru


def _marked_gru(from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
    h = state[..., 0, :]
    sizes = (2 * h.shape[-1], h.shape[-1])
    (gates, n), (gates_h, n_h) = from_input.split(sizes, -1), from_state.split(sizes, -1)
    r, z = torch.sigmoid(gates + gates_h).chunk(2, -1)
    r, z = ops.coefficient("reset gate", r), ops.coefficient("update gate", z)
    return ((1 - z) * ops.act(n + r * n_h, "tanh", "candidate") + z * h)[..., None, :]


def _marked_lstm(from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
    gates, c = from_input + from_state, state[..., 1, :]
    i, f, _, o = torch.sigmoid(gates).chunk(4, -1)
    g = gates.narrow(-1, 2 * c.shape[-1], c.shape[-1])
    i, f = ops.coefficient("input gate", i), ops.coefficient("forget gate", f)
    o = ops.coefficient("output gate", o)
    c = f * c + i * ops.act(g, "tanh", "candidate")
    return torch.stack([o * ops.act(c, "tanh", "cell"), c], dim=-2)
