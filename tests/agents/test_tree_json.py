"""Trees survive JSON exactly: types, key types, the last bit of a float, tensors."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decision_s4.agents.tree_json import pack, unpack

keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    plain,
    lambda part: (
        st.lists(part) | st.lists(part).map(tuple) | st.dictionaries(keys, part)
        | st.dictionaries(st.sampled_from(["a", "$float", "$tuple", "b/c"]), part)
    ),
    max_leaves=20,
)  # fmt: skip


def round_trip(tree):
    tensors = {}
    return unpack(json.loads(json.dumps(pack(tree, tensors, "tree"), allow_nan=False)), tensors)


@given(trees)
def test_plain_trees_come_back_with_their_types(tree) -> None:
    assert repr(round_trip(tree)) == repr(tree)


def test_by_hand() -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = {"state": {0: {"lr": math.inf, "betas": (0.9, 0.999), "exp_avg": torch.ones(2)}}}
    inner = {
        "lr": {"$float": "inf"},
        "betas": {"$tuple": [0.9, 0.999]},
        "exp_avg": {"$tensor": "tree/state/0/exp_avg"},
    }
    assert pack(tree, tensors, "tree") == {"state": {"$dict": [[0, inner]]}}
    assert tensors["tree/state/0/exp_avg"].tolist() == [1.0, 1.0]
    assert math.isnan(round_trip(math.nan))


def test_tensors_of_like_named_places_stay_apart() -> None:
    tree = {1: torch.tensor(1), "1": torch.tensor(2), "a/b": torch.tensor(3)}
    tree["a"] = {"b": torch.tensor(4)}
    back = round_trip(tree)
    assert [back[1], back["1"], back["a/b"], back["a"]["b"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.zeros(2), np.int64(3), {1, 2}, object(), torch.nn.Identity()])
def test_other_values_are_refused_by_place(value) -> None:
    with pytest.raises(TypeError, match=r"trainer/a/1: cannot store a "):
        pack({"a": [0, value]}, {}, "trainer")
