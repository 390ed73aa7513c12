"""Long contexts, decimated: each selective layer goes on with the tokens that it opens most for.

    keep_l = the K tokens of largest mean_d Δ_t[d], and the newest one

Ben-Kish et al., "DeciMamba", arXiv 2406.14528: a token with a small Δ hardly enters the state of
S6, so a layer scans the K tokens alone, and later layers see no others. The longest path through
time is then K steps. Shapes: B rows, T tokens, K kept, D model width, H heads or channels.
"""

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.stack import Backbone
from decision_s4.kernels.packing import Packing


@torch.no_grad()
def selects(backbone: Backbone) -> bool:
    """Whether a layer chooses its time steps, so that tokens can be told apart by them."""
    x = torch.zeros(1, 1, backbone.d_model, device=backbone.norm.weight.device)
    return any(op.step is not None for op in backbone.operator(x.to(backbone.norm.weight.dtype)))


@torch.no_grad()
def decimated_features(backbone: Backbone, x: Tensor, valid: Tensor, keep: int) -> Tensor:
    """(B, D): features of the last token of x (B, T, D), in evaluation mode.

    Args:
        valid: (B, T) bool, tokens of the row's episode; those that are not stand at its front.
        keep: K, at least 1.
    """
    for block, state in zip(backbone.blocks, backbone.initial_state(len(x)), strict=True):
        packing, read = Packing(torch.zeros_like(valid), valid), block.norm(x)
        with ops.holding() as record:
            y, _ = block.mixer(read, state, packing)
        delta = record.get("step")
        if delta is not None and x.shape[1] > keep:
            kept = most_open(delta, valid, keep)
            closed = delta.where(_mask(kept, valid)[..., None], 0)  # exp(0 A) = 1 and 0 B x = 0
            with ops.held(record.replaced("step", closed)):
                y, _ = block.mixer(read, state, packing)
            x, y, valid = _take(x, kept), _take(y, kept), valid.gather(1, kept)
        x = block.add(x, y)
    return backbone.norm(x)[:, -1]


def most_open(delta: Tensor, valid: Tensor, keep: int) -> Tensor:
    """(B, K) places, ascending, of the last token and the others with the largest mean Δ."""
    score = delta.mean(-1).masked_fill(~valid, -1.0)  # Δ is positive
    score[:, -1] = torch.inf
    return score.topk(keep, 1).indices.sort(1).values


def _mask(places: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter(1, places, True)


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
