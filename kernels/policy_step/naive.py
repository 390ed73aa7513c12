"""policy_step as the equation: the oracle of the fast paths."""

import torch
from torch import Tensor
from torch.nn import functional as F

from decision_s4.kernels.lti_scan import lti_step
from decision_s4.kernels.policy_step.plan import Affine, Head, Inputs, Layer, Norm, Plan


def step(
    plan: Plan, inputs: Inputs, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `PolicyStep`."""
    start = inputs.start
    action = inputs.previous_action.masked_fill(start[:, None], 0.0)
    x = torch.cat([inputs.return_to_go[:, None], inputs.observation, action], dim=-1)
    x = _affine(F.gelu(_affine(x - plan.shift, plan.embed)), plan.project)
    after = []
    for layer, before in zip(plan.layers, state, strict=True):
        x, new = _layer(x, layer, before.masked_fill(start[:, None, None, None], 0.0))
        after.append(new)
    x = _norm(x, plan.norm)
    return x if plan.head is None else _head(x, plan.head), tuple(after)


def _layer(x: Tensor, layer: Layer, state: Tensor) -> tuple[Tensor, Tensor]:
    u = _norm(x, layer.norm)
    y, state = lti_step(u, layer.system, state)
    x = x + F.gelu(_affine(F.gelu(y + layer.d * u), layer.mix))
    if layer.mlp is not None:
        norm, first, second = layer.mlp
        x = x + _affine(F.gelu(_affine(_norm(x, norm), first)), second)
    return x, state


def _head(x: Tensor, head: Head) -> Tensor:
    out = _affine(x, head.linear)
    return head.centre + head.reach * (torch.tanh(out) if head.squash else out)


def _affine(x: Tensor, affine: Affine) -> Tensor:
    return x @ affine.weight + affine.bias


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
