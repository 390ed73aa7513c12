"""Differential Mamba is the difference of two Mamba layers, and takes off what both say."""

import math

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.diff_mamba import DiffMamba
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D = 8


def make(depth: int = 0) -> DiffMamba:
    torch.manual_seed(0)
    return DiffMamba(D, DiffMamba.Options(), depth).double()


def test_it_is_the_normalised_difference():
    layer, packing = make(depth=2), Packing.unbroken(2, 9)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    one, two = (mixer(x, mixer.initial_state(2), packing)[0] for mixer in layer.mixers)
    (a_1, b_1), (a_2, b_2) = layer.lambda_vectors
    first = 0.8 - 0.6 * math.exp(-0.6)
    y = one - (torch.exp(a_1 @ b_1) - torch.exp(a_2 @ b_2) + first) * two
    y = (1 - first) * y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x, layer.initial_state(2), packing)[0], y)


def test_what_both_say_alike_is_taken_off():
    """At λ = 1 two equal layers leave nothing."""
    layer = make()
    layer.mixers[1].load_state_dict(layer.mixers[0].state_dict())
    with torch.no_grad():
        layer.lambda_vectors.zero_()
        layer.lambda_vectors[0] = (math.log(2 - layer.lambda_init) / 16) ** 0.5
    x = torch.randn(2, 9, D, dtype=torch.float64)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, 9))
    assert y.abs().max() < 1e-10


def test_deeper_layers_take_off_more():
    mixers = [block.mixer.lambda_init for block in make_backbone("diff-mamba", D, 3).blocks]
    assert mixers[0] == pytest.approx(0.2)
    assert mixers[0] < mixers[1] < mixers[2] < 0.8


def test_bad_options_are_named():
    with pytest.raises(UserError, match="d_state 0 must be at least 1"):
        make_backbone("diff-mamba", D, d_state=0)
