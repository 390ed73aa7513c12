"""Networks that tell values of states and actions. Shapes: B transitions, E members."""

import math
from itertools import pairwise
from typing import Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.agents.encoders import Features, make_features
from decision_s4.agents.feed_forward import Perceptron
from decision_s4.agents.policy import Policy
from decision_s4.agents.vision import Eyes
from decision_s4.envs.spaces import Tree


class ActionValues(nn.Module):
    """What networks of observation and action share: the two as features."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, eyes: Eyes = "cnn"
    ):
        super().__init__()
        self.observation_features = make_features(observation_space, eyes)
        self.action_features = make_features(action_space)
        self.inputs = self.observation_features.width + self.action_features.width

    def features(self, observation: Tree, action: Tree) -> Tensor:
        """(…, inputs) of observations (…) and actions (…) in the spaces' own units."""
        return torch.cat([self.observation_features(observation), self.action_features(action)], -1)


class TwinCritic(ActionValues):
    """Q_1 and Q_2: perceptrons of observation and action, with weights of their own."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, width: int, layers: int
    ):
        super().__init__(observation_space, action_space)
        self.members = ModuleList(_scalar(self.inputs, width, layers) for _ in range(2))

    def forward(self, observation: Tree, action: Tree) -> Tensor:
        """(2, …) values of observations (…) and actions (…) in the space's own units."""
        x = self.features(observation, action)
        return torch.stack([member(x).squeeze(-1) for member in self.members])


class CriticEnsemble(ActionValues):
    """E perceptrons of observation, action and perhaps return-to-go, in one batch of matrices.

    Args:
        policy: gives the spaces, what reads observations and the return's scale.
        members: E; targets take the lowest of them.
        width: of the hidden layers.
        layers: hidden layers.
        normalised: LayerNorm before each ReLU, which bounds what values far from data can be.
        sees_return: whether the return-to-go is an input.
    """

    def __init__(
        self,
        policy: Policy,
        members: int,
        width: int,
        layers: int,
        normalised: bool,
        sees_return: bool,
    ):
        super().__init__(policy.observation_space, policy.action_space, policy.options.eyes)
        self.observation_features.load_state_dict(policy.observation_features.state_dict())
        self.members, self.normalised = members, normalised
        self.return_scale = policy.options.return_scale if sees_return else None
        sizes = [self.inputs + sees_return] + [width] * layers
        self.hidden = ModuleList(MemberLinear(members, *pair) for pair in pairwise(sizes))
        self.out = MemberLinear(members, sizes[-1], 1)

    def forward(
        self, observation: Tree, action: Tensor, return_to_go: Tensor, members: int | None = None
    ) -> Tensor:
        """(E, B) values of observations (B, …), actions (B, …) in their own units and returns (B,).

        `members` asks for the first so many alone.
        """
        x = self.features(observation, action)
        if self.return_scale is not None:
            x = torch.cat([x, return_to_go[:, None] / self.return_scale], -1)
        x = x.expand(members or self.members, -1, -1)
        for layer in self.hidden:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.normalised else x)
        return self.out(x).squeeze(-1)


class MemberLinear(nn.Module):
    """x W_i + b_i of the first members: (E, B, inputs) -> (E, B, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        reach = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        used = len(x)
        return torch.baddbmm(self.bias[:used], x, self.weight[:used])


class ValueFunction(nn.Module):
    """V(s)."""

    def __init__(self, observation_space: spaces.Space, width: int, layers: int):
        super().__init__()
        self.observation_features = make_features(observation_space)
        self.network = _scalar(self.observation_features.width, width, layers)

    def forward(self, observation: Tree) -> Tensor:
        """(…) values of observations (…)."""
        return self.network(self.observation_features(observation)).squeeze(-1)


class Standardising(Protocol):
    """What has a module `observation_features`."""

    observation_features: Features


def share_statistics(policy: Policy, *others: Standardising) -> None:
    """Give the others the observation statistics of `policy`."""
    own = policy.observation_features.state_dict()
    for other in others:
        statistics = {n: v for n, v in own.items() if n.rpartition(".")[2] in ("mean", "std")}
        other.observation_features.load_state_dict(statistics, strict=False)


def _scalar(inputs: int, width: int, layers: int) -> nn.Sequential:
    return nn.Sequential(Perceptron(inputs, width, layers), nn.Linear(width, 1))
