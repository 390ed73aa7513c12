"""Values of states and actions, and what learners of values share. Shapes: B transitions."""

import copy
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.encoders import make_features
from decision_s4.agents.feed_forward import Perceptron
from decision_s4.agents.policy import Policy
from decision_s4.envs.spaces import Tree


class TwinCritic(nn.Module):
    """Q_1 and Q_2: perceptrons of observation and action, with weights of their own."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, width: int, layers: int
    ):
        super().__init__()
        self.observation_features = make_features(observation_space)
        self.action_features = make_features(action_space)
        inputs = self.observation_features.width + self.action_features.width
        self.members = nn.ModuleList(_scalar(inputs, width, layers) for _ in range(2))

    def forward(self, observation: Tree, action: Tree) -> Tensor:
        """(2, …) values of observations (…) and actions (…) in the space's own units."""
        parts = [self.observation_features(observation), self.action_features(action)]
        x = torch.cat(parts, dim=-1)
        return torch.stack([member(x).squeeze(-1) for member in self.members])


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

    observation_features: nn.Module


def share_statistics(policy: Policy, *others: Standardising) -> None:
    """Give the others the observation statistics of `policy`."""
    own = policy.observation_features.state_dict()
    for other in others:
        statistics = {n: v for n, v in own.items() if n.rpartition(".")[2] in ("mean", "std")}
        other.observation_features.load_state_dict(statistics, strict=False)


def target_of(module: nn.Module) -> Any:
    """A copy whose weights follow, untrained: a target network."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Polyak averaging: θ' ← (1 − rate) θ' + rate θ."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def one_step_target(
    reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float
) -> Tensor:
    """y = r + γ (1 − terminated) V(s'), all (B,). A truncated episode's value goes on."""
    return reward + discount * next_value * ~terminated


def _scalar(inputs: int, width: int, layers: int) -> nn.Sequential:
    return nn.Sequential(Perceptron(inputs, width, layers), nn.Linear(width, 1))
