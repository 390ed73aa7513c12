"""DeltaNet, Gated DeltaNet and KDA against their published equations, written out in float64."""

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.delta_rule import DeltaNet, GatedDeltaNet, KimiDeltaAttention
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, HEADS, STEPS, TAPS = 8, 2, 12, 4
KEY = D // HEADS


def stirred(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double()


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(x))


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(T, H · F) -> (H, T, F)"""
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def convolved(layer, x: torch.Tensor) -> torch.Tensor:
    padded = torch.cat([x.new_zeros(TAPS - 1, x.shape[1]), x])
    return sum(padded[k : k + len(x)] * layer.conv_weight[:, k] for k in range(TAPS))


def recur(layer, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The recurrence and the norm (T, H · V); alpha (H, T, K)."""
    qkv = (x @ layer.in_proj.weight.T)[:, : 3 * D + HEADS]
    q, k, v = map(by_head, swish(convolved(layer, qkv[:, : 3 * D])).split(D, dim=1))
    beta, heads = layer.beta_max * torch.sigmoid(qkv[:, 3 * D :]), []
    for h in range(HEADS):
        S, outputs = torch.zeros(KEY, KEY, dtype=x.dtype), []
        for t in range(len(x)):
            unit_q, unit_k = (z / (z @ z + 1e-6).sqrt() for z in (q[h, t], k[h, t]))
            erase = torch.eye(KEY, dtype=x.dtype) - beta[t, h] * torch.outer(unit_k, unit_k)
            S = erase @ torch.diag(alpha[h, t]) @ S + beta[t, h] * torch.outer(unit_k, v[h, t])
            outputs.append(S.T @ unit_q)
        heads.append(torch.stack(outputs))
    o = torch.stack(heads, dim=1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return (o * layer.norm.weight).flatten(1)


def published_deltanet(layer, x: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(HEADS, len(x), KEY, dtype=x.dtype)
    return recur(layer, x, ones) @ layer.out_proj.weight.T


def published_gated(layer, x: torch.Tensor) -> torch.Tensor:
    decay, gate = (x @ layer.in_proj.weight.T)[:, 3 * D + HEADS :].split([HEADS, D], dim=1)
    alpha = torch.exp(-layer.A_log.exp() * softplus(decay + layer.dt_bias))  # (T, H)
    o = recur(layer, x, alpha.T[..., None].expand(-1, -1, KEY))
    return (o * swish(gate)) @ layer.out_proj.weight.T


def published_kda(layer, x: torch.Tensor) -> torch.Tensor:
    decay, gate = (x @ layer.in_proj.weight.T)[:, 3 * D + HEADS :].split([16, 16], dim=1)
    rate = softplus(decay @ layer.decay_up.weight.T + layer.dt_bias.flatten())
    alpha = torch.exp(-layer.A_log.exp()[:, None, None] * by_head(rate))
    o = recur(layer, x, alpha)
    return (o * torch.sigmoid(gate @ layer.gate_up.weight.T)) @ layer.out_proj.weight.T


LAYERS = {
    "deltanet": (DeltaNet, published_deltanet),
    "gated-deltanet": (GatedDeltaNet, published_gated),
    "kda": (KimiDeltaAttention, published_kda),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("beta_max", [1.0, 2.0])
def test_outputs_and_gradients_equal_the_equations(name, beta_max):
    torch.manual_seed(0)
    kind, published = LAYERS[name]
    layer = stirred(kind(D, kind.Options(n_heads=HEADS, beta_max=beta_max)))
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, row) for row in x])
    inputs = [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_no_drift_over_ten_thousand_steps(name):
    torch.manual_seed(1)
    layer, packing = stirred(LAYERS[name][0](D, LAYERS[name][0].Options())), None
    packing, x = Packing.unbroken(1, 10_000), torch.randn(1, 10_000, D)
    with torch.no_grad():
        y, _ = layer(x.double(), layer.initial_state(1), packing)
        layer.float()
        found, _ = layer(x, layer.initial_state(1), packing)
    assert (found - y)[:, -1000:].norm() <= 1e-4 * y[:, -1000:].norm()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deltanet", {"n_heads": 0}, "n_heads 0 must be at least 1"),
        ("deltanet", {"n_heads": 3}, "expand_k 1.0 · d_model 8 / n_heads 3 = 2.66667 channels"),
        ("deltanet", {"d_conv": 0}, "d_conv 0 must be at least 1"),
        ("deltanet", {"beta_max": 2.5}, "beta_max 2.5 must be above 0 and at most 2"),
        ("gated-deltanet", {"dt_min": 1.0}, "dt_min 1.0 and dt_max 0.1"),
        ("kda", {"gate_rank": 0}, "gate_rank 0"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        make_backbone(name, D, **options)
