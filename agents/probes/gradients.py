"""Attribution of a policy as a function: gradients, paths of gradients, occlusion.

Shapes: W steps of the window, F features, K baselines, P points of a path.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.probes.base import Attribution, AttributionProbe
from decision_s4.agents.probes.baselines import BASELINES, baseline
from decision_s4.agents.probes.context import Context


@dataclass(frozen=True)
class GradientTimesInput(AttributionProbe):
    """x · ∂y/∂x: exact for a linear policy; against zero, which is the data's mean for standardised
    observations and no return at all for the return-to-go."""

    name = "gradient-x-input"
    question = "which inputs would change the answer, were they a little larger?"
    cheap = True

    def attribute(self, context: Context) -> Attribution:
        """One backward pass."""
        values = context.features * context.gradient(context.features[None])[0]
        return context.attribution(self.name, values, baseline="zero")


@dataclass(frozen=True)
class SmoothGrad(AttributionProbe):
    """x times the gradient averaged over noise about x (Smilkov et al., arXiv 1706.03825)."""

    name = "smoothgrad"
    question = "which inputs would change the answer, also for inputs nearby?"
    samples: int = 8
    noise: float = 0.1
    """Standard deviation, in units of each feature's own over other episodes."""
    seed: int = 0

    def attribute(self, context: Context) -> Attribution:
        """One backward pass over all samples."""
        x = context.features
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(self.samples, *x.shape, generator=generator, dtype=x.dtype)
        spread = self.noise * context.others.flatten(0, 1).std(0, correction=0)
        values = x * context.gradient(x + spread * draws.to(x.device)).mean(0)
        return context.attribution(self.name, values, baseline="zero")


@dataclass(frozen=True)
class IntegratedGradients(AttributionProbe):
    """(x − b) · ∫ ∂y/∂x along the line from b to x, mean over baselines b.

    Sundararajan et al., arXiv 1703.01365; over several baselines, Erion et al., arXiv 1906.10670.
    Complete: the values add up to y(x) − mean y(b), up to `tolerance`. Where layers decide outright
    (`seqboat`) y jumps along the line and no integral is complete: decisions are held as they were
    at x, and what they change at b is in the note.
    """

    name = "integrated-gradients"
    question = "which inputs made the answer what it is, rather than that of other episodes?"
    baseline: str = "episodes"
    tolerance: float = 1e-3
    """Of completeness, in units of the answer; the path is cut where it does not hold."""
    points: int = 8
    """Gauss-Legendre nodes of each panel that the path is cut into."""
    most_points: int = 512
    """Of all panels, those that were cut again included."""

    def attribute(self, context: Context) -> Attribution:
        """Some backward passes; the note says what completeness was reached."""
        base = baseline(self.baseline, context)
        own, context = context, context.with_decisions_held()
        panels = [Panel.of(context, base, 0.0, 1.0, self.points)]
        spent = self.points
        while (gap := sum(panel.gap for panel in panels)) >= self.tolerance:
            worst = max(panel.gap for panel in panels)
            chosen = [panel for panel in panels if panel.gap >= worst / 2]
            spent += 2 * self.points * len(chosen)
            if spent > self.most_points:
                break
            panels = [panel for panel in panels if panel.gap < worst / 2]
            for panel in chosen:
                panels += panel.halves(context, base, self.points)
        with torch.no_grad():
            bias = context.answer(base).mean().item()
            decided = bias - own.answer(base).mean().item()
        return context.attribution(
            self.name,
            torch.stack([panel.values for panel in panels]).sum(0),
            bias=bias,
            baseline=BASELINES[self.baseline][0],
            notes=(
                f"complete to {gap:.1e} with {len(panels) * self.points} points",
                *_decided(context, decided),
            ),
        )


@dataclass(frozen=True)
class Panel:
    """The integral over a part of the path, of which the answers at its ends tell the error."""

    low: float
    high: float
    values: Tensor
    """(W, F) mean over baselines."""
    gap: float
    """Between what the values add up to and what the answer changes by, mean over baselines."""

    @classmethod
    def of(cls, context: Context, base: Tensor, low: float, high: float, points: int) -> "Panel":
        """By Gauss-Legendre from each of base (K, W, F)."""
        nodes, weights = np.polynomial.legendre.leggauss(points)
        x, half = context.features, (high - low) / 2
        share = torch.as_tensor(low + half * (nodes + 1)).to(x)[:, None, None, None]
        path = base + share * (x - base)  # (P, K, W, F)
        gradient = context.gradient(path.flatten(0, 1)).view(path.shape)
        mean = (torch.as_tensor(half * weights).to(x)[:, None, None, None] * gradient).sum(0)
        values = (x - base) * mean
        with torch.no_grad():
            ends = [context.answer(base + end * (x - base)) for end in (low, high)]
        gap = (values.flatten(1).sum(1) - (ends[1] - ends[0])).abs().mean().item()
        return cls(low, high, values.mean(0), gap)

    def halves(self, context: Context, base: Tensor, points: int) -> list["Panel"]:
        """The same part in two."""
        middle = (self.low + self.high) / 2
        ends = (self.low, middle), (middle, self.high)
        return [Panel.of(context, base, low, high, points) for low, high in ends]


@dataclass(frozen=True)
class Occlusion(AttributionProbe):
    """How far the answer moves when an input is replaced by a baseline's, one after another.

    The last `singly` steps go one by one, earlier ones in blocks twice as long each; a block's
    relevance is spread evenly over its steps.
    """

    name = "occlusion"
    question = "which inputs does the answer miss, were they as in other episodes?"
    baseline: str = "episodes"
    draws: int = 2
    """Baselines to average over."""
    singly: int = 8

    def attribute(self, context: Context) -> Attribution:
        """A forward pass for each feature of each block."""
        base = baseline(self.baseline, context)[: self.draws]
        values = torch.zeros_like(context.features)
        steps = len(values)
        for first, end in time_blocks(steps, self.singly):
            tail = context.tail(steps - first)
            x = tail.features
            cut = steps - len(x)
            variants = _occluded(x, base[:, cut:], first - cut, end - cut)  # (F, K, …, F)
            with torch.no_grad():
                answer = tail.answer(variants.flatten(0, 1)).view(variants.shape[:2])
            values[first:end] = (context.prediction - answer.mean(1)) / (end - first)
        return context.attribution(
            self.name, values, baseline=BASELINES[self.baseline][0], notes=_earlier(context)
        )


def time_blocks(steps: int, singly: int) -> Iterator[tuple[int, int]]:
    """[first, end) from the newest step back: `singly` of one step, then of 2, 4, 8, …"""
    end, length = steps, 1
    while end > 0:
        if steps - end >= singly:
            length *= 2
        yield max(0, end - length), end
        end -= length


def _occluded(x: Tensor, base: Tensor, first: int, end: int) -> Tensor:
    """(F, K, W, F): of each feature, x with its steps [first, end) taken from each baseline."""
    width = x.shape[1]
    variants = x.expand(width, len(base), *x.shape).clone()
    for feature in range(width):
        variants[feature, :, first:end, feature] = base[:, first:end, feature]
    return variants


def _decided(context: Context, change: float) -> tuple[str, ...]:
    """What decisions alone, being as they are here, change in the answer to the baseline."""
    if not context.decisions:
        return ()
    return (f"decisions of layers, held as here: by themselves {change:+.4f}",)


def _earlier(context: Context) -> tuple[str, ...]:
    """What the state carried into the window adds, against a new one."""
    if context.state is None or context.first == 0:
        return ()
    with torch.no_grad():
        fresh = context.with_state(context.policy.initial_state(1)).answer(context.features[None])
    share = context.prediction - fresh.item()
    return (f"all steps before {context.first}, through the state: {share:+.4f}",)
