"""What follows from parameters that are not trained is computed once, and anew when they change."""

import copy

import pytest
import torch
from torch import nn

from decision_s4.agents.backbones.fixed import Fixed
from decision_s4.agents.backbones.s4 import S4, S4D, S4DOptions, S4Options
from decision_s4.kernels.packing import Packing


@pytest.fixture
def counted():
    """A Fixed of twice a parameter, that parameter, and how often it was computed."""
    parameter, fixed, calls = nn.Parameter(torch.ones(2)), Fixed(), []

    def compute():
        calls.append(1)
        return 2 * parameter

    return lambda: fixed(compute, [parameter]), parameter, calls


def test_it_is_computed_once_without_gradients(counted):
    get, _, calls = counted
    assert get() is get() and not get().requires_grad
    assert len(calls) == 1


def test_a_write_in_place_or_other_data_is_seen(counted):
    get, parameter, calls = counted
    get()
    with torch.no_grad():
        parameter.mul_(3)
    assert get().tolist() == [6, 6]
    parameter.data = torch.zeros(2)
    assert get().tolist() == [0, 0] and len(calls) == 3


def test_what_inference_computes_can_be_trained_with(counted):
    get, _, _ = counted
    with torch.inference_mode():
        get()
    weight = torch.ones(2, requires_grad=True)
    (weight * get()).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def output(layer, x):
    return layer(x, layer.initial_state(1), Packing.unbroken(1, x.shape[1]))[0]


@pytest.mark.parametrize("layer", [S4(4, S4Options(8)), S4D(4, S4DOptions(8))], ids=["s4", "s4d"])
def test_a_layer_follows_its_parameters(layer):
    torch.manual_seed(0)
    x = torch.randn(1, 12, 4)
    with torch.no_grad():
        layer.c.normal_()
    first = output(layer, x)
    assert layer.system()[0].a is layer.system()[0].a
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.log_dt.add_(1)
    changed = output(other, x)
    assert (changed - first).abs().max() > 1e-3
    torch.testing.assert_close(output(layer, x), first, rtol=0, atol=0)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(output(other, x), first, rtol=0, atol=0)


def test_a_layer_that_trains_its_poles_keeps_nothing():
    layer = S4(4, S4Options(8, train_ssm=True))
    assert layer.system()[0].a.requires_grad
    assert layer.system()[0].a is not layer.system()[0].a


def test_a_copy_made_for_inference_runs():
    layer, x = S4(4, S4Options(8)), torch.randn(1, 5, 4)
    with torch.inference_mode():
        copied = copy.deepcopy(layer)
        torch.testing.assert_close(output(copied, x), output(layer, x))
