"""GLA, HGRN-2 and RetNet against their published equations, written out in float64."""

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.gated_linear import GLA, HGRN2
from decision_s4.agents.backbones.retnet import RetNet, turn
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, HEADS, STEPS = 8, 2, 12
KEY = D // HEADS


def stirred(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double()


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def by_head(x: torch.Tensor) -> torch.Tensor:
    """(T, H · F) -> (H, T, F)"""
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def recur(q, k, v, alpha) -> torch.Tensor:
    """S_t = diag(α_t) S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t, each (H, T, F) -> (T, H, V)."""
    heads = []
    for q_h, k_h, v_h, alpha_h in zip(q, k, v, alpha, strict=True):
        state, outputs = torch.zeros(k.shape[2], v.shape[2], dtype=q.dtype), []
        for q_t, k_t, v_t, alpha_t in zip(q_h, k_h, v_h, alpha_h, strict=True):
            state = torch.diag(alpha_t) @ state + torch.outer(k_t, v_t)
            outputs.append(state.T @ q_t)
        heads.append(torch.stack(outputs))
    return torch.stack(heads, dim=1)


def published_gla(layer: GLA, u: torch.Tensor) -> torch.Tensor:
    q, k, v, low, gate = (u @ layer.in_proj.weight.T).split([D, D, D, 16, D], dim=1)
    alpha = torch.sigmoid(low @ layer.gate_up.T + layer.gate_bias) ** (1 / 16)
    o = recur(*map(by_head, (q / KEY**0.5, k, v, alpha)))
    o = (rms(o) * layer.norm.weight).flatten(1) * swish(gate)
    return o @ layer.out_proj.weight.T


def published_hgrn2(layer: HGRN2, u: torch.Tensor) -> torch.Tensor:
    q, f, v = (u @ layer.in_proj.weight.T).split([D, D, D], dim=1)
    low = torch.sigmoid(layer.lower_bound_logit)
    alpha = low + (1 - low) * torch.sigmoid(f)
    o = recur(*map(by_head, (swish(q), 1 - alpha, v, alpha))).flatten(1)
    return (rms(o) * layer.norm.weight) @ layer.out_proj.weight.T


def published_retnet(layer: RetNet, u: torch.Tensor) -> torch.Tensor:
    """The parallel form: (Q Kᵀ ⊙ D) V with D_ts = γ^(t−s), positions as complex phases."""
    q, k, v, gate = (u @ layer.in_proj.weight.T).split([D, D, 2 * D, 2 * D], dim=1)
    theta = 10_000.0 ** -(torch.arange(KEY // 2, dtype=u.dtype) / (KEY // 2))
    phase = torch.exp(1j * torch.arange(len(u))[:, None] * theta)
    q, k = (torch.complex(*by_head(each).chunk(2, dim=-1)) * phase for each in (q / KEY**0.5, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=u.dtype))
    age = torch.arange(len(u))[:, None] - torch.arange(len(u))
    decay = torch.where(age >= 0, gamma[:, None, None] ** age.clamp(min=0), 0)
    o = ((q @ k.conj().transpose(1, 2)).real * decay @ by_head(v)).transpose(0, 1)
    o = (rms(o) * layer.norm.weight).flatten(1) * swish(gate)
    return o @ layer.out_proj.weight.T


LAYERS = {
    "gla": (lambda: GLA(D, GLA.Options(n_heads=HEADS)), published_gla),
    "hgrn2": (lambda: HGRN2(D, HGRN2.Options(n_heads=HEADS), lower_bound=0.5), published_hgrn2),
    "retnet": (lambda: RetNet(D, RetNet.Options(n_heads=HEADS)), published_retnet),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_equal_the_equations(name):
    torch.manual_seed(0)
    make, published = LAYERS[name]
    layer = stirred(make())
    u = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(u, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected = torch.stack([published(layer, row) for row in u])
    inputs = [u, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_no_drift_over_ten_thousand_steps(name):
    torch.manual_seed(1)
    layer, packing = stirred(LAYERS[name][0]()), Packing.unbroken(1, 10_000)
    u = torch.randn(1, 10_000, D)
    with torch.no_grad():
        y, state = layer(u.double(), layer.initial_state(1), packing)
        layer.float()
        found, final = layer(u, layer.initial_state(1), packing)
    assert (found - y)[:, -1000:].norm() <= 1e-5 * y[:, -1000:].norm()
    assert (final - state).norm() <= 1e-5 * state.norm()


def test_a_gate_far_below_the_others_stays_finite():
    """A forget gate driven shut: gates of e^−100 and their gradients."""
    torch.manual_seed(2)
    layer = HGRN2(D, HGRN2.Options())
    with torch.no_grad():
        layer.in_proj.weight[D : 2 * D] = -100
    u = torch.rand(1, 50, D, requires_grad=True)
    y, _ = layer(u, layer.initial_state(1), Packing.unbroken(1, 50))
    gradients = torch.autograd.grad(y.square().sum(), [u, *layer.parameters()])
    assert all(each.isfinite().all() for each in (y, *gradients))


def test_deeper_layers_of_hgrn2_remember_longer():
    mixers = [block.mixer for block in make_backbone("hgrn2", D, n_layers=4).blocks]
    assert mixers[0].lower_bound_logit is None
    assert mixers[0].recurrence_parameters == ()
    for depth, mixer in enumerate(mixers[1:], start=1):
        bound = torch.sigmoid(mixer.lower_bound_logit)
        torch.testing.assert_close(bound, torch.full((D,), depth / 4))
        assert mixer.recurrence_parameters == ("lower_bound_logit",)


def test_gla_begins_with_gates_of_published_slowness():
    """σ(0)^(1/16) = 0.958 whatever the input, up to the small initial projection."""
    torch.manual_seed(3)
    layer = GLA(64, GLA.Options())
    *_, log_gate, _ = layer._inputs(*layer._parts(torch.randn(1, 100, 64)))
    assert abs(log_gate.exp().mean() - 0.5 ** (1 / 16)) < 0.005


def test_turning_a_hand_can_check():
    """Angles 1 and 1/100 a step; pairs are channels (0, 2) and (1, 3)."""
    found = turn(torch.tensor([1.0, 1, 0, 0]), torch.tensor(2.0, dtype=torch.float64))
    expected = torch.tensor([2.0, 0.02]).cos().tolist() + torch.tensor([2.0, 0.02]).sin().tolist()
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gla", {"n_heads": 0}, "n_heads 0 must be at least 1"),
        ("gla", {"n_heads": 3}, "expand_k 1.0 · d_model 8 / n_heads 3 = 2.66667 channels"),
        ("gla", {"expand_v": 0.1}, "expand_v 0.1"),
        ("gla", {"expand_k": float("nan")}, "expand_k nan"),
        ("gla", {"gate_rank": 0}, "gate_rank 0"),
        ("gla", {"gate_temperature": 0.0}, "gate_temperature 0.0 must be above 0"),
        ("hgrn2", {"expand_k": -1.0}, "expand_k -1.0"),
        ("retnet", {"n_heads": 8}, "makes 1 keys a head; it must be even"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        make_backbone(name, D, **options)
