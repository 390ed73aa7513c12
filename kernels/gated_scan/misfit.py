"""What the fused gated_scan does not take; Triton need not be installed to know."""

import torch
from torch import nn

WIDEST = 128
TYPES = torch.float32, torch.bfloat16


def misfit(network: nn.GRU | nn.LSTM, kind: torch.dtype) -> str | None:
    """The reason in words for `network` and inputs of a `kind`; None if it takes them."""
    for each in (kind, network.all_weights[0][1].dtype):
        if each not in TYPES:
            return f"needs float32 or bfloat16, not {each}"
    width = network.hidden_size
    return None if width <= WIDEST else f"takes a width up to {WIDEST}, not {width}"
