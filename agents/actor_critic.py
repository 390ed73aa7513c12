"""An actor and a critic on one sequence layer: what recurrent PPO trains.

    x_t = GELU(W [s_t ; a_{t−1} ; r_{t−1}]),  h_t = backbone(x_{≤t}),  π(a | h_t),  V(h_t)

`forward` runs whole rollouts in parallel, episodes following on one another; `step` one step. Both
are the same function. Shapes: B rows, T steps, D model width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import State, make_backbone, ops
from decision_s4.agents.backbones.base import parse_options
from decision_s4.agents.encoders import make_features, set_statistics
from decision_s4.agents.kept import kept
from decision_s4.agents.stochastic_heads import make_stochastic_head
from decision_s4.agents.vision import Eyes
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep


@dataclass(frozen=True)
class ActorCriticOptions:
    """What the policy and its value are made of."""

    backbone: str = kept("lru")
    """Sequence layer, any of docs/backbones.md, or mlp, which has no memory."""
    backbone_options: tuple[str, ...] = kept(())
    """Its options as name=value, such as d_state=32; --backbone NAME --help lists those of one."""
    eyes: Eyes = kept("cnn")
    """What reads images: see agents/vision.py."""
    d_model: int = kept(64)
    """Width of the backbone."""
    n_layers: int = kept(1)
    """Blocks of the backbone."""
    mlp_ratio: float = kept(0.0)
    """Hidden width of an MLP in each block, as a multiple of d_model; 0 for none."""
    mlp_activation: Literal["gelu", "relu"] = kept("gelu")
    """Activation of the MLP in each block."""
    previous_action: bool = kept(True)
    """Whether it sees its previous action."""
    previous_reward: bool = kept(False)
    """Whether it sees the previous reward, divided as rewards are."""


class ActorCritic(nn.Module):
    """A policy and its value over any Gymnasium observations, on any backbone."""

    reward_scale: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: ActorCriticOptions,
    ):
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.options, width = options, options.d_model
        self.observation_features = make_features(observation_space, options.eyes)
        self.action_features = make_features(action_space)
        self.register_buffer("reward_scale", torch.ones(()))
        inputs = self.observation_features.width
        inputs += self.action_features.width * options.previous_action + options.previous_reward
        self.embed_inputs = nn.Sequential(nn.Linear(inputs, width), ops.Activation("gelu"))
        self.backbone = make_backbone(
            options.backbone,
            width,
            options.n_layers,
            options.mlp_ratio,
            mlp_activation=options.mlp_activation,
            **parse_options(options.backbone_options),
        )
        self.head = make_stochastic_head(width, action_space)
        self.value = nn.Sequential(
            nn.Linear(width, width), ops.Activation("gelu"), nn.Linear(width, 1)
        )

    def set_statistics(self, mean: Tree, std: Tree) -> None:
        """Take observation statistics, saved with the weights from then on."""
        set_statistics(self.observation_features, mean, std)

    def embed(self, step: Any) -> Tensor:
        """Of a TimeStep or Rollout with leading dimensions …: (…, D)."""
        inputs = [self.observation_features(step.observation)]
        if self.options.previous_action:
            action = self.action_features(step.previous_action)
            inputs.append(action.masked_fill(step.start[..., None], 0.0))
        if self.options.previous_reward:
            inputs.append((step.previous_reward / self.reward_scale)[..., None])
        return self.embed_inputs(torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0])

    def forward(self, rollout: Any, state: State | None = None) -> tuple[Tensor, State]:
        """Features (B, T, D) of a Rollout's rows, and the state after them."""
        return self.backbone(self.embed(rollout), state, rollout.start)

    def value_of(self, features: Tensor) -> Tensor:
        """(…, D) -> (…): the discounted return to come, in units of `reward_scale`."""
        return self.value(features)[..., 0]

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        return self.backbone.initial_state(batch_size)

    def step(self, step: TimeStep, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Features (B, D) of one step, and the new state. Differentiable."""
        return self.backbone.step(self.embed(step), state, step.start, constants)
