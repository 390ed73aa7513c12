"""Focus: the equations step by step, and where its chunks lie."""

import math

import pytest
import torch

from decision_s4.agents.backbones import make_backbone
from decision_s4.agents.backbones.focus import Focus, segments
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

D, STEPS, CHUNK = 4, 11, 3


def make() -> Focus:
    torch.manual_seed(0)
    layer = Focus(D, Focus.Options(n_heads=1, window=CHUNK, positions="none")).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def published(layer: Focus, x: torch.Tensor) -> torch.Tensor:
    """One row (T, D), a chunk after the other."""
    z, mean, outputs = torch.zeros(D, dtype=torch.complex128), torch.zeros_like(x[0]), []
    for chunk in x.split(CHUNK):
        rate, angle = (layer.adapt.weight @ mean).chunk(2)
        rate = torch.exp(layer.log_rate + rate)
        pole = torch.polar(torch.exp(-rate), math.pi * torch.sigmoid(layer.angle + angle))
        filtered = []
        for x_t in chunk:
            z = pole * z + (1 - pole.abs() ** 2).sqrt() * x_t
            filtered.append(z.real + layer.d * x_t)
            q, k, v = layer.unit.queries_keys_values(torch.stack(filtered)).split(D, 1)
            outputs.append(layer.unit.out(torch.softmax(k @ q[-1] / D**0.5, 0) @ v))
        mean = chunk.mean(0)
    return torch.stack(outputs)


def test_outputs_and_gradients_equal_the_equations():
    layer = make()
    x = torch.randn(2, STEPS, D, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, layer.initial_state(2), Packing.unbroken(2, STEPS))
    expected, inputs = torch.stack([published(layer, row) for row in x]), [x, *layer.parameters()]
    found, wanted = (torch.autograd.grad(each.sin().sum(), inputs) for each in (y, expected))
    for a, b in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_chunks_go_on_where_they_stopped_and_begin_anew_with_an_episode():
    start = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    cut = segments(Packing(start, valid), torch.tensor([[2.0], [3.0]]), CHUNK)
    begins = cut.packing.start & valid
    assert begins.int().tolist() == [[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0, 0]]
    assert cut.rows.tolist() == [0, 0, 0, 1, 1]
    assert cut.opens_row.flatten().tolist() == [True, False, False, True, False]
    assert cut.opens_episode.flatten().tolist() == [False, False, False, False, True]
    assert cut.continues.flatten().tolist() == [True, False, False, False, False]


def test_a_filter_changes_with_what_the_chunk_before_held():
    layer = make()
    x = torch.randn(1, 2 * CHUNK + 1, D, dtype=torch.float64)
    x[0, CHUNK - 1] -= x[0, :CHUNK].sum(0)  # a first chunk whose mean is 0
    impulse = torch.zeros_like(x)
    impulse[0, CHUNK] = 1
    state, packing = layer.initial_state(1), Packing.unbroken(1, x.shape[1])
    z = torch.view_as_complex(layer(x, state, packing)[1].z)
    moved = torch.view_as_complex(layer(x + impulse, state, packing)[1].z)
    pole = torch.exp(torch.complex(-layer.log_rate.exp(), math.pi * torch.sigmoid(layer.angle)))
    unchanged = (moved - z)[0] - (1 - pole.abs() ** 2).sqrt() * pole**CHUNK
    assert unchanged.abs().min() > 1e-3  # what a filter that never changes would leave at 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window 0 must be at least 1"),
        ({"horizon_min": -1.0}, "horizon_min -1.0 and horizon_max 100.0"),
        ({"n_heads": 3}, "n_heads 3 does not divide d_model 8"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make_backbone("focus", 8, **options)
