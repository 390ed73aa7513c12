"""gated_scan by torch's own kernels: cuDNN on CUDA, oneDNN's LSTM on the CPU.

oneDNN has no episodes of several lengths, so ranks of equally many episodes make one call.
"""

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from decision_s4.kernels.gated_scan.order import pack, shrink, unpack
from decision_s4.kernels.packing import Packing

RANKS = 5  # a call of oneDNN, both ways, takes as long as so many steps of ranks.py's loop
Parts = tuple[Tensor, ...]  # h, and c of an LSTM, each (episodes, H)


def pays(x: Tensor, network: nn.GRU | nn.LSTM, packing: Packing) -> bool:
    """Whether this is faster than ranks.py on the CPU: for LSTMs whose episodes are long."""
    if not (isinstance(network, nn.LSTM) and torch.backends.mkldnn.is_available()):
        return False
    counts = packing.chunks(1).counts
    return x.dtype == torch.float32 and len(counts) >= RANKS * len(set(counts))


def scan(
    x: Tensor, network: nn.GRU | nn.LSTM, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_scan`."""
    layout = packing.chunks(1)
    if not layout.counts:
        return state.new_zeros(*x.shape[:2], state.shape[2]), state
    inputs, before = pack(x, state, layout)
    run = _packed if x.is_cuda else _by_counts
    hidden, after = run(network, inputs, layout.counts, before.unbind(1))
    return unpack(hidden, torch.stack(after, dim=1), state, layout, x.shape[1])


def _packed(
    network: nn.GRU | nn.LSTM, inputs: Tensor, counts: tuple[int, ...], parts: Parts
) -> tuple[Tensor, Parts]:
    return _call(network, PackedSequence(inputs, torch.tensor(counts)), parts)


def _by_counts(
    network: nn.GRU | nn.LSTM, inputs: Tensor, counts: tuple[int, ...], parts: Parts
) -> tuple[Tensor, Parts]:
    """A call for each run of ranks in which no episode ends."""
    runs = [(count, len(list(ranks))) for count, ranks in groupby(counts)]
    hidden: list[Tensor] = []
    ended: list[list[Tensor]] = [[] for _ in parts]
    each = inputs.split([count * ranks for count, ranks in runs])
    for (count, ranks), part in zip(runs, each, strict=True):
        parts = tuple(shrink(p, count, e) for p, e in zip(parts, ended, strict=True))
        out, parts = _call(network, part.view(ranks, count, -1), parts)
        hidden.append(out.flatten(0, 1))
    ends = tuple(torch.cat([p, *reversed(e)]) for p, e in zip(parts, ended, strict=True))
    return torch.cat(hidden), ends


def _call(
    network: nn.GRU | nn.LSTM, inputs: Tensor | PackedSequence, parts: Parts
) -> tuple[Tensor, Parts]:
    carried = tuple(part.contiguous()[None] for part in parts)
    hidden, after = network(inputs, carried if len(parts) > 1 else carried[0])
    after = after if isinstance(after, tuple) else (after,)
    data = hidden.data if isinstance(hidden, PackedSequence) else hidden
    return data, tuple(part[0] for part in after)
