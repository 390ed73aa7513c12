"""A SequencePolicy as a policy_step plan: its linear maps multiplied out once, in float64.

The three embeddings, the division by return scale and standard deviation, and the projection's
first layer are one matrix; only the mean stays apart, since x − mean loses digits in any other
order. Shapes: E embedding width, D model width, F features.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones.s4 import LinearStateSpace, linear_of
from decision_s4.agents.backbones.stack import Block
from decision_s4.agents.encoders import Standardised
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.policy_step import Affine, Head, Layer, Mlp, Norm, Plan


def can_plan(policy: nn.Module) -> TypeGuard[SequencePolicy]:
    """Whether a plan is the same function as the policy's own step."""
    if type(policy) is not SequencePolicy or policy.options.mlp_activation != "gelu":
        return False
    drops = policy.training and policy.options.dropout > 0
    linear = all(isinstance(block.mixer, LinearStateSpace) for block in policy.backbone.blocks)
    return linear and not drops and policy.head.linear.weight.device.type in ("cpu", "cuda")


@torch.no_grad()
def plan_of(policy: SequencePolicy) -> Plan:
    """The plan of a policy that `can_plan`; it shares tensors with the policy."""
    head = policy.head
    return Plan(
        _shift(policy),
        _embedding(policy),
        _affine(policy.project[2]),
        tuple(_layer(block) for block in policy.backbone.blocks),
        _norm(policy.backbone.norm),
        _box_head(head) if isinstance(head, BoxHead) else None,
    )


def can_fold(policy: nn.Module) -> TypeGuard[SequencePolicy]:
    """Whether `folded_token` is the same function as the policy's own embedding."""
    return type(policy) is SequencePolicy and not policy.training


@torch.no_grad()
def folded_token(policy: SequencePolicy) -> Callable[[TimeStep], Tensor]:
    """The policy's `token`, in five operations on features."""
    shift, first, second = _shift(policy), _embedding(policy), _affine(policy.project[2])
    observation = plan_features(policy.observation_features)
    action = plan_features(policy.action_features)

    def token(step: TimeStep) -> Tensor:
        done = action(step.previous_action).masked_fill(step.start[:, None], 0.0)
        x = torch.cat([step.return_to_go[:, None], observation(step.observation), done], 1) - shift
        x = F.gelu(torch.addmm(first.bias, x, first.weight))
        return torch.addmm(second.bias, x, second.weight)

    return token


def plan_features(features: nn.Module) -> Callable[[Tree], Tensor]:
    """Values of a space (B, …) as the features (B, F) that a plan reads, not yet standardised."""
    if isinstance(features, Standardised):
        dtype = features.mean.dtype
        return lambda x: x if x.ndim == 2 and x.dtype == dtype else x.to(dtype).reshape(len(x), -1)
    return features


def _shift(policy: SequencePolicy) -> Tensor:
    parts = (policy.observation_features, policy.action_features)
    means = [p.mean if isinstance(p, Standardised) else _zeros(policy, p.width) for p in parts]
    return torch.cat([_zeros(policy, 1), *means])


def _zeros(policy: SequencePolicy, width: int) -> Tensor:
    return policy.embed_return.weight.new_zeros(width)


def _embedding(policy: SequencePolicy) -> Affine:
    first, dtype = policy.project[0], policy.embed_return.weight.dtype
    assert isinstance(first, nn.Linear)
    to_return, to_observation, to_action = first.weight.double().chunk(3, dim=1)  # each (D, E)
    embed_return, embed_observation = policy.embed_return, policy.embed_observation
    columns = [
        to_return @ embed_return.weight.double() / policy.options.return_scale,
        to_observation @ _unscaled(embed_observation, policy.observation_features),
        to_action @ _unscaled(policy.embed_action, policy.action_features),
    ]
    bias = first.bias + to_return @ embed_return.bias.double()
    bias = bias + to_observation @ embed_observation.bias.double()
    return Affine(torch.cat(columns, dim=1).T.to(dtype), bias.to(dtype))


def _unscaled(embed: nn.Linear, features: nn.Module) -> Tensor:
    """The embedding's weight (E, F), for features not yet divided by their standard deviation."""
    weight = embed.weight.double()
    return weight / features.std.double() if isinstance(features, Standardised) else weight


def _layer(block: Block) -> Layer:
    mixer, parts = linear_of(block.mixer), block.mlp
    system, d = mixer.constants()
    mlp = None if parts is None else Mlp(_norm(parts[0]), _affine(parts[1]), _affine(parts[3]))
    return Layer(_norm(block.norm), system, d, _affine(mixer.out), mlp)


def _box_head(head: BoxHead) -> Head:
    return Head(_affine(head.linear), head.centre, head.reach, head.bounded)


def _affine(linear: nn.Module) -> Affine:
    assert isinstance(linear, nn.Linear)
    return Affine(linear.weight.T, linear.bias)


def _norm(norm: nn.Module) -> Norm:
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight, norm.bias, norm.eps)
