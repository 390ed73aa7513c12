"""Linear read-outs: exact where the answer is linear, nothing on shuffled labels."""

import numpy as np
import pytest

from decision_s4.agents.probes.linear import _ago, _shuffled, r_squared


def episodes(count=4, steps=200, width=3):
    generator = np.random.default_rng(0)
    return [generator.normal(size=(steps, width)) for _ in range(count)]


def test_a_linear_label_is_known_and_a_shuffled_one_is_not():
    x = episodes()
    y = [values @ [1.0, -2.0, 0.5] + 3 for values in x]
    assert r_squared(x, y) == pytest.approx(1, abs=1e-3)
    assert r_squared(x, _shuffled(y)) < 0.05


def test_what_differs_between_episodes_is_judged_on_others():
    """A label that is constant within an episode cannot be learned from its neighbours."""
    x, y = episodes(), [np.full(200, float(i)) for i in (0, 5, 1, 9)]
    assert r_squared(x, y) < 0


def test_the_past_begins_after_the_lag():
    from types import SimpleNamespace

    import torch

    recording = SimpleNamespace(features=torch.arange(10.0).view(5, 2))
    found = _ago(recording, 2)
    assert np.isnan(found[:2]).all()
    assert found[2:].tolist() == [1, 3, 5]
