"""gated_scan by torch's own kernels (cuDNN on CUDA)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from decision_s4.kernels.gated_scan.order import pack, unpack
from decision_s4.kernels.packing import Packing


def scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`."""
    layout = packing.chunks(1)
    if not layout.counts:
        return state.new_zeros(*x.shape[:2], state.shape[2]), state
    inputs, before = pack(x, state, layout)
    parts = tuple(part.contiguous()[None] for part in before.unbind(1))
    carried = parts if isinstance(network, nn.LSTM) else parts[0]
    hidden, after = network(PackedSequence(inputs, torch.tensor(layout.counts)), carried)
    after = torch.cat(after if isinstance(after, tuple) else (after,)).transpose(0, 1)
    return unpack(hidden.data, after, state, layout, x.shape[1])
