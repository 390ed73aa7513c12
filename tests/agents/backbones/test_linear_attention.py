"""Linear, Hedgehog and Lightning attention against their quadratic forms, written in float64."""

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.linear_attention import Hedgehog, Lightning, LinearAttention
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, HEADS, STEPS = 8, 2, 12


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(T, H · F) -> (H, T, F)"""
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def averaged(q, k, v) -> torch.Tensor:
    """Weights φ(q)·φ(k), each row divided by its sum."""
    weights = (q @ k.transpose(1, 2)).tril()
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(0, 1).flatten(1)


def published_linear(layer, x: torch.Tensor) -> torch.Tensor:
    q, k, v = map(by_head, (x @ layer.in_proj.weight.T).split(D, dim=1))
    q, k = (torch.where(z > 0, z + 1, z.exp()) for z in (q, k))
    return averaged(q, k, v) @ layer.out_proj.weight.T


def published_hedgehog(layer, x: torch.Tensor) -> torch.Tensor:
    q, k, v = map(by_head, (x @ layer.in_proj.weight.T).split(D, dim=1))
    mapped = []
    for z, by in zip((q, k), layer.feature_maps, strict=True):
        z = z @ by.transpose(1, 2)
        sides = [side.exp() / side.exp().sum(-1, keepdim=True) for side in (z, -z)]
        mapped.append(torch.cat(sides, -1))
    return averaged(*mapped, v) @ layer.out_proj.weight.T


def published_lightning(layer, x: torch.Tensor) -> torch.Tensor:
    *qkv, gate = (x @ layer.in_proj.weight.T).split(D, dim=1)
    q, k, v = (by_head(z / (1 + torch.exp(-z))) for z in qkv)
    age = torch.arange(len(x))[:, None] - torch.arange(len(x))
    slopes = torch.tensor([2.0**-5, 2.0**-9], dtype=x.dtype)[
        :, None, None
    ]  # the second layer of two
    o = ((q @ k.transpose(1, 2) * torch.exp(-slopes * age)).tril() @ v).transpose(0, 1).flatten(1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return (o * torch.sigmoid(gate)) @ layer.out_proj.weight.T


OPTIONS = LinearAttention.Options(n_heads=HEADS)
LAYERS = {
    "linear-attention": (lambda: LinearAttention(D, OPTIONS), published_linear),
    "hedgehog": (lambda: Hedgehog(D, OPTIONS), published_hedgehog),
    "lightning": (lambda: Lightning(D, OPTIONS, depth=0.5), published_lightning),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_equal_the_quadratic_form(name):
    torch.manual_seed(0)
    make, published = LAYERS[name]
    layer = make().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, row) for row in x])
    inputs = [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["linear-attention", "hedgehog"])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_features_that_underflow_leave_numbers(name, scale):
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    x = (scale * torch.randn(2, STEPS, D)).requires_grad_()
    y, state = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    found = torch.autograd.grad(y.sum() + state.sum(), [x, *layer.parameters()])
    assert all(each.isfinite().all() for each in (y, state, *found))


def test_deeper_layers_of_lightning_forget_slower():
    """Head 1 of 4: exp(−1/4) in the first of two layers, exp(−1/8) in the second."""
    decays = [
        -block.mixer._inputs(*block.mixer._parts(torch.zeros(1, D)))[3][0, 0, 0]
        for block in make_backbone("lightning", D, n_layers=2).blocks
    ]
    torch.testing.assert_close(torch.stack(decays), torch.tensor([0.25, 0.125]))


def test_attention_averages():
    """Values that are all alike come out as they are, whatever the weights."""
    torch.manual_seed(1)
    layer = LinearAttention(D, OPTIONS)
    q, k = layer.features(*torch.randn(2, 1, 9, HEADS, 4))
    v, gate = torch.full((1, 9, HEADS, 4), 3.0), torch.zeros(1, 9, HEADS, 1)
    o, _ = layer._scan(q, k, v, gate, layer.initial_state(1), Packing.unbroken(1, 9))
    torch.testing.assert_close(o, v)


@pytest.mark.parametrize("name", LAYERS)
def test_bad_options_are_named(name):
    with pytest.raises(UserError, match=r"n_heads 3 = 2\.66667 channels"):
        make_backbone(name, D, n_heads=3)
