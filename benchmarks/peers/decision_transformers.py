"""E Decision Transformers side by side: their weights, random windows for each, their AdamW.

The policy is RecomputedTokenPolicy with a transformer (agents/tokens.py) as configs/
decision-transformer.yaml has it, the update DecisionLearner's (agents/decision.py); the same
numbers come out but for the order of sums. Every operation serves all runs, nothing couples them.
Observations and actions of all robots are padded with zeros to one width, which leaves every
gradient as it is; actions lie in [−1, 1]. Shapes: E runs, B windows, K steps, A actions, N steps of
data.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decision_s4.agents.policy import Policy
from decision_s4.agents.training import TrainConfig
from decision_s4.envs.trajectories import Trajectories

BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's, as torch has them
SEEN = ("observation", "action", "return_to_go", "timestep")
Weights = dict[str, Tensor]


class Windows:
    """The data of all runs on one device, and random windows of it."""

    def __init__(self, sets: list[Trajectories], runs: list[int], device: str):
        """`runs` (E,): the number of each run's set."""
        width = max(s.observations.shape[1] for s in sets)
        actions = max(s.actions.shape[1] for s in sets)
        parts = [_flat(s, width, actions) for s in sets]
        first = torch.tensor([0, *(len(p["end"]) for p in parts)]).cumsum(0)
        for each, offset in zip(parts, first.tolist(), strict=False):
            each["end"] += offset
        self.data = {name: torch.cat([p[name] for p in parts]).to(device) for name in parts[0]}
        self.first = first[runs, None].to(device)
        self.count = (first[1:] - first[:-1])[runs, None].to(device)
        self.used = torch.stack([parts[i]["used"][0] for i in runs])[:, None, None].to(device)

    def draw(self, rows: int, steps: int) -> dict[str, Tensor]:
        """(E, B, K, …); `valid` is False behind an episode's end."""
        shape = (len(self.first), rows)
        place = torch.rand(shape, dtype=torch.float64, device=self.first.device)
        return self.windows((place * self.count).long() + self.first, steps)

    def windows(self, begin: Tensor, steps: int) -> dict[str, Tensor]:
        """Those that begin at the steps `begin` (E, B)."""
        at = begin[..., None] + torch.arange(steps, device=begin.device)
        end = self.data["end"][begin][..., None]
        found = {name: self.data[name][at.minimum(end - 1)] for name in SEEN}
        return found | {"valid": at < end}


def _flat(data: Trajectories, width: int, actions: int) -> dict[str, Tensor]:
    """(N, …) of one set: standardised observations, `end` of the step's episode, action mask."""
    mean, std = data.observation_statistics()
    step = torch.arange(data.num_steps)
    length = torch.as_tensor(data.lengths)
    episode = torch.repeat_interleave(torch.arange(len(length)), length)
    end = length.cumsum(0)[episode]
    seen = (data.observations[(step + episode).numpy()] - mean) / std
    action = torch.tensor(data.actions[:]).float()
    used = torch.ones(action.shape[1])
    return {
        "observation": _padded(torch.as_tensor(seen).float(), width),
        "action": _padded(action, actions),
        "return_to_go": torch.as_tensor(data.returns_to_go()).float(),
        "timestep": step - (end - length[episode]),
        "end": end,
        "used": _padded(used, actions).expand(len(step), -1),
    }


def _padded(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))


def stacked(policies: list[Policy], width: int, actions: int) -> Weights:
    """Each parameter of all policies as (E, …), zeros where a robot has fewer features."""
    pads = {
        "embed_observation.weight": (width, 128),
        "embed_action.weight": (actions, 128),
        "head.linear.weight": (128, actions),
        "head.linear.bias": (actions,),
    }

    def fit(name: str, x: Tensor) -> Tensor:
        if name.startswith("head"):
            return F.pad(x, (0, 0) * (x.ndim - 1) + (0, actions - len(x)))
        return _padded(x, pads[name][0]) if name in pads else x

    names = dict(policies[0].named_parameters())
    return {n: torch.stack([fit(n, p.get_parameter(n).detach()) for p in policies]) for n in names}


def unstacked(weights: Weights, run: int, policy: Policy) -> None:
    """Put the weights of one run into its policy."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            here = tuple(slice(0, n) for n in parameter.shape)
            parameter.copy_(weights[name][run][here])


def actions_of(w: Weights, batch: dict[str, Tensor], config: TrainConfig) -> Tensor:
    """(E, B, K, A) of windows, with dropout.

    The first action token of a window is padding to agents/tokens.py; here it is left out.
    """
    drop, before = config.dropout, slice(-1)
    runs = torch.arange(len(w["norm.weight"]), device=w["norm.weight"].device)
    time = w["embed_time.weight"][runs[:, None, None], batch["timestep"]]
    to_go = batch["return_to_go"][..., None] / config.return_scale
    done = _linear(w, "embed_action", batch["action"][:, :, before]) + time[:, :, before]
    tokens = [
        F.pad(done, (0, 0, 1, 0)),
        _linear(w, "embed_return", to_go) + time,
        _linear(w, "embed_observation", batch["observation"]) + time,
    ]
    x = torch.stack(tokens, 3).flatten(2, 3)[:, :, 1:]
    x = F.dropout(_norm(w, "norm", x), drop)
    for i in range(config.n_layers):
        x = _block(w, f"backbone.blocks.{i}.", x, drop)
    x = _norm(w, "backbone.norm", x[:, :, 1::3])
    return torch.tanh(_linear(w, "head.linear", x))


def _block(w: Weights, name: str, x: Tensor, drop: float) -> Tensor:
    y = _linear(w, f"{name}mixer.queries_keys_values", _norm(w, f"{name}norm", x))
    q, k, v = (each.flatten(0, 1)[:, None] for each in y.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
    x = x + F.dropout(_linear(w, f"{name}mixer.out", y.reshape(x.shape)), drop)
    hidden = F.relu(_linear(w, f"{name}mlp.1", _norm(w, f"{name}mlp.0", x)))
    return x + F.dropout(_linear(w, f"{name}mlp.3", hidden), drop)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    """x (E, B, T, I) -> (E, B, T, O)."""
    flat, bias = x.flatten(1, 2), w[f"{name}.bias"][:, None]
    return torch.baddbmm(bias, flat, w[f"{name}.weight"].mT).unflatten(1, x.shape[1:3])


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return F.layer_norm(x, x.shape[-1:]) * scale + shift


class Learner:
    """AdamW for E runs, each with a gradient clipped by its own norm."""

    def __init__(self, weights: Weights, windows: Windows, config: TrainConfig):
        self.weights = {name: x.requires_grad_() for name, x in weights.items()}
        self.windows, self.config = windows, config
        self.parameters = list(self.weights.values())
        self.moments = [[torch.zeros_like(p) for p in self.parameters] for _ in BETAS]
        self.step = torch.zeros((), device=self.parameters[0].device)
        self.loss = torch.zeros(len(windows.first), device=self.step.device)

    def update(self) -> None:
        """One gradient step of all runs."""
        config = self.config
        batch = self.windows.draw(
            math.ceil(config.batch_steps / config.context_steps), config.context_steps
        )
        self.loss.copy_(self.learn(batch))

    def learn(self, batch: dict[str, Tensor]) -> Tensor:
        """A gradient step on these windows; the losses (E,) before it."""
        losses = self.losses(batch)
        self._adam(torch.autograd.grad(losses.sum(), self.parameters))
        return losses.detach()

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """(E,): mean squared error over valid steps and the robot's actions."""
        used, valid = self.windows.used, batch["valid"]
        error = (actions_of(self.weights, batch, self.config) - batch["action"]) * used
        each = error.square().sum(-1) / used.sum(-1)
        return (each * valid).sum((1, 2)) / valid.sum((1, 2))

    @torch.no_grad()
    def _adam(self, gradients: tuple[Tensor, ...]) -> None:
        config = self.config
        self.step += 1
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        scale = (config.gradient_clip / (norm + 1e-6)).clamp(max=1)
        rate = config.learning_rate * (self.step / config.warmup_steps).clamp(max=1)
        corrections = [1 - (self.step * math.log(b)).exp() for b in BETAS]
        for p, g, mean, square in zip(self.parameters, gradients, *self.moments, strict=True):
            g = g * scale.view(-1, *[1] * (g.ndim - 1))
            mean.lerp_(g, 1 - BETAS[0])
            square.lerp_(g * g, 1 - BETAS[1])
            if p.ndim > 2:
                p.mul_(1 - rate * config.weight_decay)
            p.sub_(rate * (mean / corrections[0]) / ((square / corrections[1]).sqrt() + EPSILON))

    def state_dict(self) -> dict[str, object]:
        """Weights, moments and the number of updates; what is drawn goes on anew."""
        plain = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": plain, "moments": self.moments, "step": self.step}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
        for ours, saved in zip(self.moments, state["moments"], strict=True):
            for mean, value in zip(ours, saved, strict=True):
                mean.copy_(value)
        self.step.copy_(state["step"])
