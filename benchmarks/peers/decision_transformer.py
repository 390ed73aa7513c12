"""Decision Transformer (arXiv 2106.01345) in its published size: the peer of the benchmarks.

    tokens R_1 s_1 a_1 … R_K s_K a_K;  a_t is read from the token of s_t

A causal transformer of 3 layers, width 128, one head and ReLU, over the last K = 20 steps, each
token with its time step's embedding. It acts as published: all 3 K tokens anew at every step.
Written from the paper to act as fast as torch allows: fused attention, and a window of all K steps
needs no mask. The two unused heads of the published model (state and return) are left out.
Shapes: B rows, K steps, D width, F observation features, A action dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decision_s4.envs.timestep import TimeStep


class Block(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, S, D), mask (B, 1, S, S) bool or None for plain causal attention."""
        x = x + self.out(self._attend(self.norm_attention(x), mask))
        return x + self.mlp(self.norm_mlp(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        split = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B, heads, S, D / heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return y.transpose(1, 2).flatten(2)


class DecisionTransformer(nn.Module):
    """Return-to-go, observation and action tokens in, the next action out."""

    def __init__(
        self,
        observation_width: int,
        action_width: int,
        context: int = 20,
        width: int = 128,
        layers: int = 3,
        heads: int = 1,
        max_steps: int = 1000,
        return_scale: float = 1000.0,
    ):
        super().__init__()
        self.context, self.max_steps, self.return_scale = context, max_steps, return_scale
        self.observation_width, self.action_width = observation_width, action_width
        self.embed_time = nn.Embedding(max_steps, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(observation_width, width)
        self.embed_action = nn.Linear(action_width, width)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, action_width)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(observation_width))
        self.register_buffer("std", torch.ones(observation_width))

    def forward(
        self, return_to_go: Tensor, observation: Tensor, action: Tensor, time: Tensor
    ) -> Tensor:
        """The action (B, A) in [−1, 1] that follows the last observation.

        Args:
            return_to_go: (B, K), undiscounted.
            observation: (B, K, F).
            action: (B, K, A); the last one is not known yet and not looked at.
            time: (B, K) int64 steps since the start; negative at places before the start.
        """
        at = self.embed_time(time.clamp(0, self.max_steps - 1))
        tokens = [
            self.embed_return(return_to_go[..., None] / self.return_scale) + at,
            self.embed_observation((observation - self.mean) / self.std) + at,
            self.embed_action(action) + at,
        ]
        x = self.norm_in(torch.stack(tokens, dim=2).flatten(1, 2))  # (B, 3 K, D)
        mask = _mask(time)
        for block in self.blocks:
            x = block(x, mask)
        return torch.tanh(self.head(self.norm_out(x[:, -2])))


def _mask(time: Tensor) -> Tensor | None:
    """(B, 1, 3 K, 3 K) bool: causal, nothing before the start; None if all steps are real."""
    if (time[:, 0] >= 0).all():
        return None
    real = (time >= 0).repeat_interleave(3, dim=1)[:, None, None]
    size = real.shape[-1]
    causal = torch.ones(size, size, dtype=torch.bool, device=time.device).tril()
    # A token always sees itself: without any key the softmax of a padded one is 0 / 0.
    return (causal & real) | torch.eye(size, dtype=torch.bool, device=time.device)


class TransformerAgent:
    """A DecisionTransformer as an Agent: its state is the last K steps of every row."""

    def __init__(self, model: DecisionTransformer):
        self.model = model.eval()

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Nothing seen yet: every place of the window lies before the start."""
        model, lead = self.model, (batch_size, self.model.context)
        return {
            "return_to_go": torch.zeros(lead),
            "observation": torch.zeros(*lead, model.observation_width),
            "action": torch.zeros(*lead, model.action_width),
            "time": torch.full(lead, -1),
        }

    @torch.inference_mode()
    def act(
        self, step: TimeStep, state: dict[str, Tensor], deterministic: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of all rows: action (B, A), and the windows moved on by one step."""
        state = _push(step, state)
        return self.model(**state), state


def _push(step: TimeStep, state: dict[str, Tensor]) -> dict[str, Tensor]:
    time = state["time"]
    if step.start.any():
        time = time.masked_fill(step.start[:, None], -1)
    actions = [state["action"][:, 1:-1], step.previous_action[:, None]]
    return {
        "return_to_go": _append(state["return_to_go"], step.return_to_go),
        "observation": _append(state["observation"], step.observation),
        "action": torch.cat([*actions, torch.zeros_like(actions[1])], dim=1),
        "time": _append(time, time[:, -1] + 1),
    }


def _append(window: Tensor, latest: Tensor) -> Tensor:
    return torch.cat([window[:, 1:], latest[:, None]], dim=1)
