"""Decision Transformer's tokens: three a step, each with the embedding of its time step.

    … a_{t−1}, R_t, s_t, a_t, R_{t+1}, …   the action a_t is read from the token of s_t

Chen et al., arXiv 2106.01345, section 3. Here the tokens of step t are (a_{t−1}, R_t, s_t): the
same sequence, so that a step is complete when the policy must act. The first action token of an
episode (or window) is left out. Shapes: B rows, T steps, D model width.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_s4.agents.backbones import Backbone, ops
from decision_s4.agents.backbones.base import State, reset
from decision_s4.agents.policy import Policy, PolicyOptions, silence_unseen
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import Tree
from decision_s4.envs.timestep import TimeStep

PER_STEP = 3  # tokens; the observation's, the last one, is where the action is read


class TokenState(NamedTuple):
    """Where a TokenPolicy stands."""

    time: Tensor
    """(B,) int64 number of the next step in its episode."""
    memory: State
    """The backbone's."""


class TokenPolicy(Policy):
    """A policy over any Gymnasium spaces and any backbone, three tokens a step."""

    token_order: ClassVar = {"previous_action": 0, "return_to_go": 1, "observation": 2}
    backbone: Backbone

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        options: PolicyOptions,
    ):
        super().__init__(observation_space, action_space, options)
        width = options.d_model
        self.embed_time = nn.Embedding(options.max_episode_steps, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(self.observation_features.width, width)
        self.embed_action = nn.Linear(self.action_features.width, width)
        self.norm = ops.LayerNorm(width)
        self.dropout = nn.Dropout(options.dropout)
        self.add_backbone_and_head()
        silence_unseen(self, self.embed_return, self.embed_action)

    def embed(
        self, return_to_go: Tensor, observation: Tree, previous_action: Tree, time: Tensor
    ) -> Tensor:
        """Tokens (…, 3, D) of steps; return_to_go (…), time (…) int64 counted in the episode.

        Raises:
            UserError: for a time beyond max_episode_steps.
        """
        check_episode_length(int(time.max()) + 1, self.options)
        now, before = self.embed_time(time), self.embed_time((time - 1).clamp(min=0))
        to_go, seen, done = self.tapped_inputs(return_to_go, observation, previous_action)
        embedded = [self.embed_action(done), self.embed_return(to_go), self.embed_observation(seen)]
        position = ops.tap("inputs.position", torch.stack([before, now, now], dim=-2))
        return self.dropout(self.norm(torch.stack(embedded, dim=-2) + position))

    def forward(self, batch: Any, state: TokenState | None = None) -> tuple[Tensor, TokenState]:
        """Features (B, T, D) of packed episodes or windows, and the state after them.

        Args:
            batch: anything with return_to_go (B, T), observation and previous_action trees
                (B, T, …), timestep (B, T) int64, start and valid (B, T) bool.
            state: carried in; None for a new one.
        """
        x, starts, valids = self.backbone_inputs(batch)
        before, memory = (None, None) if state is None else state
        y, memory = self.backbone(x, memory, starts, valids)
        time = _next(batch.timestep, valids[:, PER_STEP - 1 :: PER_STEP], before)
        return y[:, PER_STEP - 1 :: PER_STEP], TokenState(time, memory)

    def backbone_inputs(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, 3 T, D) of a batch, which of them start an episode, which are valid."""
        start, time = batch.start, batch.timestep
        valid = torch.ones_like(start) if batch.valid is None else batch.valid
        x = self.embed(batch.return_to_go, batch.observation, batch.previous_action, time)
        never = torch.zeros_like(start)
        starts = torch.stack([never, start, never], -1).flatten(1)
        valids = torch.stack([valid & ~start, valid, valid], -1).flatten(1)
        return x.flatten(1, 2), starts, valids

    def initial_state(self, batch_size: int) -> TokenState:
        """The state before an episode's first step."""
        device = self.embed_time.weight.device
        time = torch.zeros(batch_size, dtype=torch.long, device=device)
        return TokenState(time, self.backbone.initial_state(batch_size))

    def step(
        self, step: TimeStep, state: TokenState, constants: Any = None
    ) -> tuple[Tensor, TokenState]:
        """Features (B, D) of one step, and the new state. Differentiable."""
        time = state.time.masked_fill(step.start, 0)
        x = self.embed(step.return_to_go, step.observation, step.previous_action, time)
        action, to_go, observation = x.unbind(1)
        _, memory = self.backbone.step(action, state.memory, None, constants)
        memory = reset(memory, step.start, self.backbone.initial_state(len(time)))
        _, memory = self.backbone.step(to_go, memory, None, constants)
        y, memory = self.backbone.step(observation, memory, None, constants)
        return y, TokenState(time + 1, memory)


def check_episode_length(steps: int, options: PolicyOptions) -> None:
    """Raise UserError for an episode that the time-step embedding does not know."""
    if options.tokens == "three" and steps > options.max_episode_steps:
        raise UserError(
            f"an episode has {steps} steps or more, but the time-step embedding knows "
            f"{options.max_episode_steps}; train with a larger --max-episode-steps"
        )


def _next(time: Tensor, valid: Tensor, before: Tensor | None) -> Tensor:
    """(B,) the time after each row's last valid step; `before` (None: 0) where it has none."""
    last = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(1)
    after = time.gather(1, last[:, None]).squeeze(1) + 1
    return torch.where(valid.any(1), after, 0 if before is None else before)
