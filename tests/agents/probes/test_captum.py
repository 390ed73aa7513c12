"""Gradient methods and occlusion beside captum's, on policies of several backbones.

captum is the oracle: integrated gradients and input × gradient are its own; its occlusion with a
window of one cell is ours where each step stands by itself; of its noise tunnel only the noise's
draws are others, so that means over many samples are compared.
"""

from collections.abc import Callable

import pytest
import torch
from test_gradients import context_of, policy_of
from torch import Tensor

from decision_s4.agents.probes.baselines import baseline
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.gradients import (
    GradientTimesInput,
    IntegratedGradients,
    Occlusion,
    SmoothGrad,
)

captum = pytest.importorskip("captum.attr", reason="the oracle is not here: pip install captum")
WINDOW = 6
backbones = pytest.mark.parametrize("backbone", ["s4", "mamba", "transformer", "gru"])


def context_for(backbone: str) -> Context:
    return context_of(policy_of(backbone=backbone), window=WINDOW)


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def per_baseline(context: Context, attribute: Callable[[Tensor], Tensor]) -> Tensor:
    """(W, F) mean over the baselines."""
    base = baseline("episodes", context)
    return torch.stack([attribute(each[None])[0] for each in base]).mean(0).detach()


@backbones
def test_gradient_times_input_is_captums(backbone):
    context = context_for(backbone)
    wanted = captum.InputXGradient(context.answer).attribute(context.features[None].clone())[0]
    found = GradientTimesInput().attribute(context).values
    assert_same(found, wanted.detach(), 1e-5)


@backbones
def test_integrated_gradients_are_captums(backbone):
    """With the same nodes of the path, baseline by baseline."""
    context = context_for(backbone)
    oracle = captum.IntegratedGradients(context.answer)
    wanted = per_baseline(
        context,
        lambda base: oracle.attribute(
            context.features[None], base, n_steps=16, method="gausslegendre"
        ),
    )
    probe = IntegratedGradients(points=16, most_points=16)
    assert_same(probe.attribute(context).values, wanted, 1e-4)


@backbones
def test_occlusion_is_captums(backbone):
    context = context_for(backbone)
    oracle = captum.Occlusion(lambda x: context.answer(x).detach())
    wanted = per_baseline(
        context, lambda base: oracle.attribute(context.features[None], (1, 1), baselines=base)
    )
    found = Occlusion(draws=len(context.others), singly=WINDOW).attribute(context).values
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@backbones
def test_smoothgrad_is_near_captums(backbone):
    context, samples = context_for(backbone), 2000
    torch.manual_seed(0)
    spread = 0.1 * context.others.flatten(0, 1).std(0)
    scaled = context.features / spread  # captum's noise is the same for all features
    oracle = captum.NoiseTunnel(captum.Saliency(lambda x: context.answer(x * spread)))
    slope = oracle.attribute(
        scaled[None], nt_type="smoothgrad", nt_samples=samples, stdevs=1.0, abs=False
    )[0]
    found = SmoothGrad(samples=samples).attribute(context).values
    assert_same(found, scaled * slope.detach(), 0.02)
