"""The sequence policy: return-to-go, observation and previous action in, action out.

    x_t = MLP[ E_r R_t ; E_s s_t ; E_a a_{t−1} ],  h_t = backbone(x_{≤t}),  a_t = head(h_t)

One token a step and no time-step embedding: the recurrence carries time (Decision S4,
arXiv 2306.05167). `forward` runs packed whole episodes in parallel, `step` one step; both are the
same function. Shapes: B rows, T steps, D model width, E embedding width.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import Backbone, State, ops
from decision_s4.agents.policy import Policy, PolicyOptions, silence_unseen
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep
from decision_s4.kernels.packing import Packing


class SequencePolicy(Policy):
    """A policy over any Gymnasium spaces and any backbone, one token a step."""

    backbone: Backbone

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: PolicyOptions,
    ):
        super().__init__(observation_space, action_space, options)
        width = options.d_embed
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(self.observation_features.width, width)
        self.embed_action = nn.Linear(self.action_features.width, width, bias=False)
        self.project = nn.Sequential(
            nn.Linear(3 * width, options.d_model),
            ops.Activation("gelu"),
            nn.Linear(options.d_model, options.d_model),
        )
        self.add_backbone_and_head()
        _keep_input_variance(self)
        silence_unseen(self, self.embed_return, self.embed_action)

    def embed(
        self, return_to_go: Tensor, observation: Tree, previous_action: Tree, start: Tensor
    ) -> Tensor:
        """Leading dimensions …: return_to_go (…), start (…) bool -> (…, D)."""
        inputs = self.tapped_inputs(return_to_go, observation, previous_action)
        parts = [
            self.embed_return(inputs[0]),
            self.embed_observation(inputs[1]),
            self.embed_action(inputs[2]).masked_fill(start[..., None], 0.0),
        ]
        return self.project(torch.cat(parts, dim=-1))

    def forward(
        self, batch: Any, state: State | None = None, packing: Packing | None = None
    ) -> tuple[Tensor, State]:
        """Features (B, T, D) of packed episodes, and the state after them.

        Args:
            batch: anything with return_to_go (B, T), observation and previous_action trees
                (B, T, …), start and valid (B, T) bool.
            state: carried in; None for a new one.
            packing: that of the batch's start and valid, if known.
        """
        x, start, valid = self.backbone_inputs(batch)
        return self.backbone(x, state, start, valid, packing)

    def backbone_inputs(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, T, D) of a batch, and which of them start an episode and are valid (B, T)."""
        x = self.embed(batch.return_to_go, batch.observation, batch.previous_action, batch.start)
        return x, batch.start, batch.valid

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        return self.backbone.initial_state(batch_size)

    def step(self, step: TimeStep, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Features (B, D) of one step, and the new state. Differentiable."""
        return self.backbone.step(self.token(step), state, step.start, constants)

    def token(self, step: TimeStep) -> Tensor:
        """(B, D): what the backbone reads of one step."""
        return self.embed(step.return_to_go, step.observation, step.previous_action, step.start)


@torch.no_grad()
def _keep_input_variance(policy: SequencePolicy) -> None:
    """Start the three embeddings at unit scale, so that none drowns the others."""
    for layer in (policy.embed_return, policy.embed_observation, policy.embed_action):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
