"""Implicit attention of every layer, its rollout, and gradient-weighted attribution.

A layer held at its input is y_t = Σ_s M[t, s] v_s + …: see backbones/operator.py for M. Its "scan"
part is hidden attention (Ali, Zimerman, Wolf, arXiv 2403.01590), its "layer" part includes gate,
convolution and activation (Zimerman, Ali, Wolf, arXiv 2405.16504).
Shapes: B rows, T tokens, H heads, I tokens asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.backbones.operator import MAX_ELEMENTS, MixerOp
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.reading import Answer, layered
from decision_s4.agents.tokens import TokenState
from decision_s4.envs.errors import UserError

BLOCK = 1 << 22
"""Numbers of the rows that are held at a time."""


@torch.no_grad()
def operators(
    policy: Policy, batch: Any, part: str = "layer", state: State | None = None
) -> list[MixerOp]:
    """Each layer of a policy, in evaluation mode, as an operator on its tokens."""
    layers = layered(policy)
    x, start, valid = layers.backbone_inputs(batch)
    memory = state.memory if isinstance(state, TokenState) else state
    return layers.backbone.operator(x, memory, start, valid, part)


def mean_map(op: MixerOp, max_elements: int = MAX_ELEMENTS) -> Tensor:
    """(B, T, T) mean over heads of |M|; some rows of all heads are held at a time.

    Raises:
        UserError: for a map of more than `max_elements`.
    """
    rows, steps = op.values.shape[:2]
    _check_size(rows, steps, max_elements)
    return torch.cat([op.rows(block).abs().mean(1) for block in _blocks(op)], 1)


def rollout(maps: Iterable[Tensor]) -> Tensor:
    """(B, T, T) how much of each token reaches each: Π_l (I + normalised |M_l|) / 2, last first.

    Attention rollout (Abnar, Zuidema, arXiv 2005.00928), as products of whole matrices: the query
    in question is a row of the result.

    Args:
        maps: (B, T, T) of each layer, first layer first, at least 0.
    """
    reached = None
    for each in maps:
        identity = torch.eye(each.shape[-1], dtype=each.dtype, device=each.device)
        total = each.sum(-1, keepdim=True)
        # A row of zeros (a token that is not valid, a layer that is silent) keeps to itself.
        mixing = torch.where(total > 0, each / total.where(total > 0, 1), identity)
        step = (identity + mixing) / 2
        reached = step if reached is None else step @ reached
    if reached is None:
        raise ValueError("rollout needs the map of at least one layer")
    return reached


def gradient_weighted(
    policy: Policy,
    batch: Any,
    answer: Answer,
    part: str = "layer",
    state: State | None = None,
    max_elements: int = MAX_ELEMENTS,
) -> list[Tensor]:
    """(B, T, T) of each layer: mean over heads of max(0, M ⊙ ∂answer/∂M), exact.

    The gradient in M[t, s] is g_t · v_s with g the answer's gradient in the layer's mixed values,
    taken of the policy itself, nothing held (Chefer, Gur, Wolf, arXiv 2012.09838; of hidden
    attention: arXiv 2403.01590). Roll out with `attribution_rollout`.
    """
    operations = operators(policy, batch, part, state)
    upstream = _upstream(policy, batch, answer, operations, state)
    maps = []
    for op, gradient in zip(operations, upstream, strict=True):
        rows, steps = op.values.shape[:2]
        _check_size(rows, steps, max_elements)
        maps.append(torch.cat([_weighted_rows(op, gradient, block) for block in _blocks(op)], 1))
    return maps


def attribution_rollout(maps: Sequence[Tensor]) -> Tensor:
    """(B, T, T) Π_l (I + Â_l), Â_l the gradient-weighted maps, last layer first."""
    reached = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    for each in maps:
        reached = reached + each @ reached
    return reached


def _check_size(rows: int, steps: int, max_elements: int) -> None:
    size = rows * steps * steps
    if size > max_elements:
        raise UserError(
            f"a map ({rows}, {steps}, {steps}) has {size:,} elements, more than {max_elements:,}; "
            "ask for the rows of the steps of interest, or for a shorter stretch"
        )


def _upstream(
    policy: Policy, batch: Any, answer: Answer, operations: list[MixerOp], state: State | None
) -> list[Tensor]:
    """The answer's gradient in each layer's mixed values, (B, T, …)."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> ops.Handler:
        def handle(x: Tensor) -> Tensor:
            found[layer] = x + torch.zeros_like(x, requires_grad=True)
            return found[layer]

        return handle

    places = {f"blocks.{i}.{op.output_tap}": keep(i) for i, op in enumerate(operations)}
    with torch.enable_grad(), ops.taps(places):
        features, _ = policy(batch, state)
        total = answer(policy, features).sum()
    gradients = torch.autograd.grad(total, [found[i] for i in range(len(operations))])
    return list(gradients)


def _weighted_rows(op: MixerOp, gradient: Tensor, steps: Tensor) -> Tensor:
    """(B, I, T)"""
    here, v = gradient[:, steps], op.values
    if op.layout == "heads":
        slope = torch.einsum("bihv,bthv->bhit", here, v)
    elif op.layout == "channels":
        slope = torch.einsum("bih,bth->bhit", here.flatten(2), v.flatten(2))
    else:
        slope = torch.einsum("bio,btj->bojit", here.flatten(2), v.flatten(2)).flatten(1, 2)
    return (op.rows(steps) * slope).clamp(min=0).mean(1)


def _blocks(op: MixerOp) -> Iterator[Tensor]:
    """All tokens, as many at a time as BLOCK allows of their rows."""
    rows, tokens = op.values.shape[:2]
    return iter(torch.arange(tokens).split(max(1, BLOCK // (rows * op.heads * tokens))))
