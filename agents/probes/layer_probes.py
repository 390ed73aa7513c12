"""The probes that explain an answer by the layers: attention, relevance, TensorLens.

Shapes: W steps of the window, F features, T tokens of it (W, or three times W).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from decision_s4.agents.backbones import Backbone
from decision_s4.agents.backbones.operator import MixerOp
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.attention import (
    attribution_rollout,
    gradient_weighted,
    mean_map,
    operators,
    rollout,
)
from decision_s4.agents.probes.base import Attribution, AttributionProbe
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.reading import POSITION
from decision_s4.agents.probes.relevance import Relevance, relevance
from decision_s4.agents.probes.tensorlens import tensorlens
from decision_s4.envs.errors import UserError


def check_layers(name: str, policy: Policy) -> None:
    """Raise UserError where a policy has no layers over time."""
    if not isinstance(policy.backbone, Backbone):
        raise UserError(
            f"probe '{name}' reads layers over time, and a policy of --tokens "
            f"{policy.options.tokens} has none; use gradient-x-input, occlusion or lrp"
        )


def by_step(tokens: Tensor, context: Context) -> Tensor:
    """(T,) weights of tokens as (W, 1) of steps."""
    return tokens.view(len(context.features), -1).sum(1, keepdim=True)


class LayerAttribution(AttributionProbe):
    """How much each step weighs; which of its features do, attention does not tell."""

    def check(self, policy: Policy) -> None:
        check_layers(self.name, policy)

    def attribute(self, context: Context) -> Attribution:
        """The weights of the window's steps at its last token."""
        return context.attribution(self.name, by_step(self._weights(context), context))

    def _weights(self, context: Context) -> Tensor:
        """(T,)"""
        raise NotImplementedError


class HiddenAttention(LayerAttribution):
    """|α[t, s]| of each layer's recurrence, normalised, mean over heads and layers."""

    name = "hidden-attention"
    question = "which past steps does the recurrence of the layers weigh most?"
    cheap = True
    part: ClassVar[str] = "scan"

    def _weights(self, context: Context) -> Tensor:
        ops = operators(context.policy, context.batch, self.part, context.state)
        return torch.stack([_last_row(op) for op in ops]).mean(0)


class ImplicitAttention(HiddenAttention):
    """As hidden attention, with each layer's convolution, activation, norm and gate."""

    name = "implicit-attention"
    question = "which past steps do the layers weigh most, from what enters them to what leaves?"
    part = "layer"


class Rollout(LayerAttribution):
    """Which steps reach the last one through all layers and the residual stream."""

    name = "rollout"
    question = "which past steps reach the answer through all layers?"

    def _weights(self, context: Context) -> Tensor:
        ops = operators(context.policy, context.batch, state=context.state)
        return rollout(mean_map(op) for op in ops)[0, -1]


class GradientRollout(LayerAttribution):
    """As rollout, each weight times the answer's gradient in it, where that is positive."""

    name = "gradient-rollout"
    question = "through which past steps do the layers push this very answer up?"

    def _weights(self, context: Context) -> Tensor:
        maps = gradient_weighted(context.policy, context.batch, context.read, state=context.state)
        weights = attribution_rollout(maps)[0, -1]
        weights[-1] -= 1  # the residual stream's own: the same whatever was read
        return weights


def _last_row(op: MixerOp) -> Tensor:
    row = op.rows([op.values.shape[1] - 1])[0, :, 0].abs().mean(0)
    return row / row.sum().clamp(min=torch.finfo(row.dtype).tiny)


class TensorLens(AttributionProbe):
    """The answer as a linear map of all inputs, its coefficients held: exact, with its bias."""

    name = "tensorlens"
    question = (
        "how much of the answer does each input carry, gates and weights being what they are?"
    )
    cheap = True

    def attribute(self, context: Context) -> Attribution:
        """One backward pass through the held policy."""
        lens = tensorlens(context.policy, context.batch, context.read, context.state)
        parts = lens.contributions()
        position, kept = parts.pop(POSITION, None), lens.bias + lens.state_share
        if position is not None:
            kept = kept + position.sum()
        notes = (f"of which earlier steps, through the state: {lens.state_share.item():+.4f}",)
        values = join(context, parts)
        return context.attribution(self.name, values, bias=kept.item(), notes=notes)


@dataclass(frozen=True)
class LRP(AttributionProbe):
    """Layer-wise relevance propagation: MambaLRP's rules. See relevance.py."""

    name = "lrp"
    question = "where did the answer come from, passed back layer by layer without loss?"
    cheap = True
    rules: ClassVar[str] = "lrp"

    def attribute(self, context: Context) -> Attribution:
        """One backward pass under the rules."""
        found = relevance(context.policy, context.batch, context.read, self.rules, context.state)
        values, kept = join(context, found.inputs), found.absorbed
        if found.position is not None:
            kept = kept + found.position.sum()
        notes = (*_absorbed(found), *_beside_occlusion(context, values))
        return context.attribution(self.name, values, bias=kept.item(), notes=notes)


class AttnLRP(LRP):
    """Relevance also through queries, keys, B and C: AttnLRP's rule for products."""

    name = "attnlrp"
    rules = "attnlrp"


class SelectionLRP(LRP):
    """As attnlrp, and through time steps, decays and gates by their gradients: not conserved."""

    name = "lrp-selection"
    question = "where did the answer come from, what only selects included?"
    rules = "selection"


def join(context: Context, parts: dict[str, Tensor]) -> Tensor:
    """(W, F) of what each modality got; 0 for one that the policy does not read."""
    values = torch.zeros_like(context.features)
    for name, place in context.slices.items():
        if name in parts:
            values[:, place] = parts[name][0]
    return values


def _absorbed(found: Relevance) -> tuple[str, ...]:
    notes = [f"biases and steps before the window absorb {found.conservation_gap.item():.0%}"]
    if found.position is not None:
        notes.append(f"positions take {found.position.sum().item():+.4f}")
    return tuple(notes)


@torch.no_grad()
def _beside_occlusion(context: Context, values: Tensor) -> tuple[str, ...]:
    """The return-to-go may act by selection alone, which held coefficients do not show."""
    place = context.slices["return_to_go"]
    if not (len(context.others) and context.policy.options.condition_on_return):
        return ()
    variants = context.features.repeat(len(context.others), 1, 1)
    variants[..., place] = context.others[..., place]
    change = context.prediction - context.answer(variants).mean().item()
    own = values[:, place].sum().item()
    return (f"return-to-go: relevance {own:+.4f}, replaced by other episodes' {change:+.4f}",)
