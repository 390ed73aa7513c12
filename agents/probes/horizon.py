"""How far back a policy looks: time constants, ε-horizons, mean distance, receptive field.

Lags are counted in tokens; a policy of three tokens a step has three a step.
Shapes: B rows, T tokens or steps, H heads, I tokens asked for, L lags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.backbones.operator import MixerOp
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.probes.reading import Answer, read

EPSILON = 0.05


@dataclass(frozen=True)
class LayerHorizon:
    """How far one layer looks back, in tokens."""

    time_constants: Tensor | None
    """(modes,) tokens after which 1 / e of each mode is left, ascending; of gates that depend on
    the input, the median over tokens. None for attention, which has none."""
    profile: Tensor
    """(L,) mean over rows and heads of |M[t, t − lag]|, summing to 1."""
    epsilon_horizon: int
    """The fewest lags that hold all but EPSILON of the profile."""
    mean_distance: float
    """Σ |M[t, s]| (t − s) / Σ |M[t, s]| (Ben-Kish et al., DeciMamba, arXiv 2406.14528)."""


@torch.no_grad()
def layer_horizon(op: MixerOp, tokens: Sequence[int] | None = None) -> LayerHorizon:
    """The horizon of one layer, its map read in the rows of `tokens` (None: the last)."""
    tokens = [op.values.shape[1] - 1] if tokens is None else list(tokens)
    profile = lag_profile(op.rows(tokens), tokens)
    lags = torch.arange(len(profile), device=profile.device)
    return LayerHorizon(
        time_constants(op),
        profile,
        epsilon_horizon(profile),
        float((profile * lags).sum()),
    )


@torch.no_grad()
def time_constants(op: MixerOp) -> Tensor | None:
    """(modes,) −1 / log |λ| of each mode, ascending, in tokens; ∞ for one that never forgets.

    Of an LTI layer that is 1 / (−Re(A) Δ), Δ in tokens; times a token's seconds, it is in seconds.
    """
    logs = op.mixer.log_decays(op.coefficients)
    if logs is None:
        return None
    if logs.ndim > 2:  # (B, T, …): chosen anew at each token
        logs = logs.flatten(0, 1).flatten(1)
        logs = logs.contiguous().median(0).values  # torch 2.13 reads an expanded one beyond its end
    return (-1 / logs.flatten().clamp(max=0)).abs().sort().values


def lag_profile(rows: Tensor, tokens: Sequence[int]) -> Tensor:
    """(L,) from rows (B, H, I, T) of `tokens`: mean |M[t, t − lag]|, normalised to sum 1."""
    longest = max(tokens) + 1
    profile, weights = rows.new_zeros(longest), rows.abs().mean((0, 1))
    for row, token in zip(weights, tokens, strict=True):
        profile[: token + 1] += row[: token + 1].flip(0)
    total = profile.sum()
    return profile / total if total > 0 else profile


def epsilon_horizon(profile: Tensor, epsilon: float = EPSILON) -> int:
    """The fewest lags, from lag 0 on, that hold at least 1 − epsilon of a profile (L,)."""
    held = profile.abs().cumsum(0)
    enough = held >= (1 - epsilon) * held[-1] * (1 - 1e-12)  # the last sum is rounded
    return int(enough.to(torch.uint8).argmax()) + 1


def gradient_field(
    policy: Policy, batch: Any, answer: Answer, state: State | None = None
) -> Tensor:
    """(B, T) effective receptive field by gradient: Σ_f |∂answer/∂input[t, f]|.

    As Luo et al. (arXiv 1701.04128) measured that of convolutions, over time here.
    """
    gradients = read(policy, batch, answer, state).gradients()
    fields = [gradients[name].abs().sum(-1) for name in MODALITIES if name in gradients]
    return torch.stack(fields).sum(0)


@torch.no_grad()
def occlusion_field(
    policy: Policy,
    batch: Any,
    answer: Answer,
    steps: Sequence[int],
    state: State | None = None,
) -> Tensor:
    """(B, I) effective receptive field by occlusion: |change of the answer| if a step were as the
    one before it (step 0: as the one after it), in all modalities. One run a step."""
    features, _ = policy(batch, state)
    plain, found = answer(policy, features), []
    for step in steps:

        def hold(x: Tensor, step: int = step) -> Tensor:
            other = step - 1 if step else min(1, x.shape[1] - 1)
            return x.index_copy(1, torch.tensor([step], device=x.device), x[:, other : other + 1])

        with ops.taps({f"inputs.{name}": hold for name in MODALITIES}):
            features, _ = policy(batch, state)
        found.append((answer(policy, features) - plain).abs())
    return torch.stack(found, 1)
