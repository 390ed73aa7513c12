"""A policy without memory or return: the plain perceptron of value-based algorithms."""

from itertools import pairwise
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.heads import make_head
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.envs.timestep import TimeStep


class Perceptron(nn.Sequential):
    """`layers` times Linear and ReLU: (…, inputs) -> (…, width)."""

    def __init__(self, inputs: int, width: int, layers: int):
        sizes = [inputs] + [width] * layers
        linear = [nn.Linear(*pair) for pair in pairwise(sizes)]
        super().__init__(*(part for layer in linear for part in (layer, ops.Activation("relu"))))

    def constants(self) -> None:
        """Nothing to compute ahead of acting; see backbones/base.py."""
        return

    def recurrence_parameters(self) -> list[nn.Parameter]:
        """None: it remembers nothing."""
        return []


class FeedForwardPolicy(Policy):
    """a = head(perceptron(s)): `n_layers` hidden layers of width `d_model`; its state is empty."""

    backbone: Perceptron

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: PolicyOptions,
    ):
        super().__init__(observation_space, action_space, options)
        width = self.observation_features.width
        self.backbone = Perceptron(width, options.d_model, options.n_layers)
        self.head = make_head(options.d_model, action_space)

    def forward(self, batch: Any, state: State = ()) -> tuple[Tensor, State]:
        """Features (…, D) of anything with an observation tree (…), and the state as it was."""
        return self.backbone(self.features_of(batch.observation)), state

    def initial_state(self, batch_size: int) -> State:
        """Nothing."""
        return ()

    def step(self, step: TimeStep, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Features (B, D) of one step, and the state as it was."""
        return self(step, state)

    def act(self, observation: Any) -> Tensor:
        """The likeliest action (…) of observations (…), differentiable for Box actions."""
        return self.head.act(self.backbone(self.features_of(observation)), True)
