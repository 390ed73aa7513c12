"""Policies whose right explanation is known: they copy what they saw a few steps ago."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import Backbone, ops
from decision_s4.agents.backbones.base import Mixer, State
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.kernels.packing import Packing

OBSERVATION, HAND = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,))
FREE = spaces.Box(-np.inf, np.inf, (2,))


def new_policy(backbone: str, hand: spaces.Box = HAND, **options) -> Policy:
    """In float64 and evaluation mode, every parameter stirred."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_layers": 2, "d_embed": 4, "mlp_ratio": 1.0} | options
    policy = make_policy(OBSERVATION, hand, PolicyOptions(backbone=backbone, **sizes))
    policy.double().requires_grad_(True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return policy.eval()


def new_batch(steps: int, rows: int = 2, seed: int = 0) -> Any:
    """Packed rows; the last row begins a second episode at step 3."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, steps, *shape, generator=draw, dtype=torch.float64)

    start = torch.zeros(rows, steps, dtype=torch.bool)
    start[:, 0] = True
    if steps > 3:
        start[-1, 3] = True
    time = torch.arange(steps).repeat(rows, 1)
    time[-1, 3:] -= min(3, steps)
    return SimpleNamespace(
        return_to_go=1000 * normal(),
        observation=normal(3),
        previous_action=normal(2).masked_fill(start[..., None], 0),
        start=start,
        valid=None,
        timestep=time,
    )


@torch.no_grad()
def without_biases(policy: Policy) -> Policy:
    """The policy with all that is added, rather than multiplied, at zero."""
    for name, parameter in policy.named_parameters():
        if "bias" in name.rsplit(".")[-1]:
            parameter.zero_()
    return policy


@dataclass(frozen=True)
class DelayOptions:
    """Options of `Delay`."""

    lag: int = 3


class Delay(Mixer):
    """Channel j + D / 2 of y_t is channel j of x_{t − lag}, 0 before the episode began."""

    Options = DelayOptions
    mixing: ClassVar = {"layer": "channels"}

    def __init__(self, d_model: int, options: DelayOptions):
        super().__init__()
        self.lag = options.lag
        self.weight = nn.Parameter(torch.ones(d_model))

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        return torch.zeros(batch_size, 1, dtype=self.weight.dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        x, steps = ops.tap("layer.values", x), torch.arange(x.shape[1])
        age = steps - (packing.start * steps).cummax(1).values
        moved = x.roll(self.lag, 1).where(age[..., None] >= self.lag, 0)
        mixed = ops.tap("layer.mixed", self.weight * moved)
        return mixed.roll(mixed.shape[-1] // 2, -1), state

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        raise NotImplementedError


class NoNorm(nn.LayerNorm):
    """Leaves what it is given as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def planted(lag: int, linear: bool = True) -> Policy:
    """Action i is observation i of `lag` steps ago; all else is as nothing.

    Linear throughout, or with the layer's norm and the policy's activation left in: then a bent
    copy, of positive observations.
    """
    policy = new_policy("s4", FREE, n_layers=1, mlp_ratio=0.0)
    policy.backbone = Backbone([Delay(8, DelayOptions(lag))], 8, 0.0, 0.0).double().eval()
    policy.backbone.norm = NoNorm(8, dtype=torch.float64)
    if linear:
        policy.project[1] = policy.project[2] = nn.Identity()
        policy.backbone.blocks[0].norm = NoNorm(8, dtype=torch.float64)
    for name, parameter in policy.named_parameters():
        parameter.fill_(float("norm.weight" in name or "mixer.weight" in name))
    policy.embed_observation.weight.copy_(torch.eye(4, 3))
    policy.project[0].weight.copy_(torch.eye(8, 12).roll(4, 1))  # return, observation, action
    if not linear:
        policy.project[2].weight.copy_(torch.eye(8))
    policy.head.linear.weight.copy_(torch.eye(2, 8).roll(4, 1))
    return policy
