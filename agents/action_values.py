"""Feed-forward values of states, actions and returns-to-go: an ensemble in one batch of matrices.

    Q_i(s, a, R),  i = 1 … E

Shapes: E members, B rows, W hidden width.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.agents.encoders import make_features
from decision_s4.agents.policy import Policy
from decision_s4.envs.spaces import Tree


class Affine(nn.Module):
    """x W_i + b_i of the first members: (E, B, inputs) -> (E, B, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        reach = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        used = len(x)
        return torch.baddbmm(self.bias[:used], x, self.weight[:used])


class ActionValues(nn.Module):
    """E perceptrons over the current observation, action and return-to-go.

    Args:
        policy: gives the spaces, the observation statistics and the return's scale.
        members: E; targets take the lowest of them.
        width: W.
        layers: hidden layers.
        normalised: LayerNorm before each ReLU, which bounds what values far from data can be.
        sees_return: whether R is an input.
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
        super().__init__()
        self.observation_features = make_features(policy.observation_space)
        self.action_features = make_features(policy.action_space)
        self.observation_features.load_state_dict(policy.observation_features.state_dict())
        self.members, self.normalised = members, normalised
        self.return_scale = policy.options.return_scale if sees_return else None
        inputs = self.observation_features.width + self.action_features.width + sees_return
        sizes = [inputs] + [width] * layers
        self.hidden = nn.ModuleList(Affine(members, *pair) for pair in pairwise(sizes))
        self.out = Affine(members, sizes[-1], 1)

    def forward(
        self, observation: Tree, action: Tensor, return_to_go: Tensor, members: int | None = None
    ) -> Tensor:
        """(E, B) values of observations (B, …), actions (B, …) in their own units and returns (B,).

        `members` asks for the first so many alone.
        """
        parts = [self.observation_features(observation), self.action_features(action)]
        if self.return_scale is not None:
            parts.append(return_to_go[:, None] / self.return_scale)
        x = torch.cat(parts, -1).expand(members or self.members, -1, -1)
        for layer in self.hidden:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]) if self.normalised else x)
        return self.out(x).squeeze(-1)
