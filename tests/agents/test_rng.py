"""Every generator continues where it stood."""

import json
import random

import numpy as np
import torch

from decision_s4.agents.rng import rng_state, set_rng_state
from decision_s4.agents.tree_json import pack, unpack


def draws() -> list[float]:
    python = [random.random(), random.gauss(0, 1)]
    numpy = [np.random.rand(), np.random.randn()]  # noqa: NPY002
    return [*python, *numpy, *torch.randn(3).tolist()]


def test_draws_repeat_after_a_trip_through_json() -> None:
    draws()  # leaves the second half of a pair of Gaussian draws pending
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(rng_state(), tensors, "rng")))
    first = draws()
    assert draws() != first
    set_rng_state(unpack(packed, tensors))
    assert draws() == first
