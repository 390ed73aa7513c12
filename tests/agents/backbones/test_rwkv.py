"""RWKV-7's time mixing against its published equations, written out in float64."""

import math

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.rwkv import RWKV
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, HEADS, STEPS = 8, 2, 12
KEY = D // HEADS


def published(layer: RWKV, x: torch.Tensor) -> torch.Tensor:
    """Row by row, S (V, K) as in the paper: S_t = S_{t−1} (diag(w) − κᵀ (a ⊙ κ)) + vᵀ k̃."""
    W_r, W_k, W_v = (each.weight for each in layer.maps)
    W_1, A_1, G_1 = (each.weight for each in layer.down)
    W_2, A_2, G_2 = (each.weight for each in layer.up)
    S, previous, outputs = torch.zeros(HEADS, KEY, KEY, dtype=x.dtype), torch.zeros_like(x[0]), []
    for x_t in x:
        x_r, x_k, x_v, x_w, x_a, x_g = (x_t + mu * (previous - x_t) for mu in layer.shift)
        previous = x_t
        r, k, v = W_r @ x_r, W_k @ x_k, W_v @ x_v
        decay = torch.sigmoid(layer.decay_bias + W_2 @ torch.tanh(W_1 @ x_w))
        w = torch.exp(-math.exp(-0.5) * decay)
        a = torch.sigmoid(layer.rate_bias + A_2 @ (A_1 @ x_a))
        g = G_2 @ torch.sigmoid(G_1 @ x_g)
        kappa, k = layer.erased * k, k * (1 + (a - 1) * layer.replaced)
        heads, new = [], []
        for h in range(HEADS):
            part = slice(h * KEY, (h + 1) * KEY)
            unit = kappa[part] / (kappa[part] @ kappa[part] + 1e-6).sqrt()
            S_h = S[h] @ (torch.diag(w[part]) - torch.outer(unit, a[part] * unit))
            S_h = S_h + torch.outer(v[part], k[part])
            new.append(S_h)
            y = S_h @ r[part]
            y = (y - y.mean()) / (y.var(unbiased=False) + 64e-5).sqrt()
            y = y * layer.norm.weight + layer.norm.bias
            heads.append(y + (r[part] @ (layer.bonus[h] * k[part])) * v[part])
        S = torch.stack(new)
        outputs.append(layer.out.weight @ (torch.cat(heads) * g))
    return torch.stack(outputs)


def test_outputs_and_gradients_equal_the_equations():
    torch.manual_seed(0)
    layer = RWKV(D, RWKV.Options(n_heads=HEADS)).double()
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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_heads": 3}, "n_heads 3 does not divide d_model 8"), ({"rank": 0}, "rank 0 must be")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("rwkv", D, **options)
