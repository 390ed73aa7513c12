"""Values of every Gymnasium space become the features that a hand would write."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents.encoders import Image, is_image, make_features, set_statistics
from decision_s4.agents.vision import KINDS
from decision_s4.envs.errors import UserError

IMAGE = spaces.Box(0, 255, (20, 24, 3), np.uint8)


def features(space: spaces.Space, value) -> list:
    return make_features(space)(value).tolist()


def test_box_is_flattened_and_standardised():
    encoder = make_features(spaces.Box(-np.inf, np.inf, (2, 2)))
    set_statistics(encoder, mean=np.array([[1.0, 2], [3, 4]]), std=np.array([[1.0, 2], [4, 8]]))
    x = torch.tensor([[[2.0, 4], [7, 12]]])
    assert encoder(x).tolist() == [[1, 1, 1, 1]]
    assert set(encoder.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (spaces.Box(-1, 1, ()), torch.tensor([0.5, -1.0]), [[0.5], [-1]]),
        (spaces.Box(0, 9, (2,), np.int64), torch.tensor([[3, 4]]), [[3, 4]]),
        (spaces.Discrete(3), torch.tensor([2, 0]), [[0, 0, 1], [1, 0, 0]]),
        (spaces.Discrete(2, start=-1), torch.tensor([-1, 0]), [[1, 0], [0, 1]]),
        (spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 0]]), [[0, 1, 1, 0, 0]]),
        (spaces.MultiDiscrete([2, 2], start=[5, 7]), torch.tensor([[6, 7]]), [[0, 1, 1, 0]]),
        (spaces.MultiDiscrete([[2], [2]]), torch.tensor([[[0], [1]]]), [[1, 0, 0, 1]]),
        (spaces.MultiBinary(3), torch.tensor([[1, 0, 1]]), [[1, 0, 1]]),
        (spaces.MultiBinary([2, 1]), torch.tensor([[[1], [0]]]), [[1, 0]]),
    ],
)
def test_by_hand(space, value, expected):
    assert features(space, value) == expected
    assert make_features(space).width == len(expected[0])


def test_padding_outside_the_space_is_all_zeros():
    """Padding and the action before an episode are 0, which Discrete(3, start=1) does not hold."""
    assert features(spaces.Discrete(3, start=1), torch.tensor([0, 1])) == [[0, 0, 0], [1, 0, 0]]


def test_dict_and_tuple_are_laid_side_by_side():
    space = spaces.Dict(
        {"legs": spaces.Tuple((spaces.Discrete(2), spaces.Box(-9, 9, (1,)))), "arm": IMAGE}
    )
    encoder = make_features(space)
    image = torch.zeros(5, 20, 24, 3, dtype=torch.uint8)
    value = {"legs": {"0": torch.ones(5).long(), "1": torch.full((5, 1), 7.0)}, "arm": image}
    assert encoder(value).shape == (5, 128 + 2 + 1)
    assert encoder(value)[0, -3:].tolist() == [0, 1, 7]
    legs = {"0": np.zeros(()), "1": np.array([3.0])}, {"0": np.ones(()), "1": np.array([2.0])}
    set_statistics(encoder, *({"legs": part, "arm": np.zeros(IMAGE.shape)} for part in legs))
    assert encoder(value)[0, -3:].tolist() == [0, 1, 2]


def test_the_order_of_a_dict_does_not_matter():
    """Spaces read from JSON are sorted, those made from an OrderedDict are not."""
    parts = [("z", spaces.Box(-1, 1, (2,))), ("a", spaces.Discrete(2))]
    made, read = (make_features(spaces.Dict(OrderedDict(p))) for p in (parts, parts[::-1]))
    statistics = {"z": np.ones(2), "a": np.zeros(())}, {"z": np.full(2, 2.0), "a": np.ones(())}
    set_statistics(made, *statistics)
    read.load_state_dict(made.state_dict())
    value = {"z": torch.tensor([[3.0, 5.0]]), "a": torch.tensor([1])}
    assert made(value).tolist() == read(value).tolist() == [[0, 1, 1, 2]]


def test_any_key_will_do():
    names = ["values", "a.b", "forward", "", "type"]
    encoder = make_features(spaces.Dict({name: spaces.Discrete(2) for name in names}))
    assert encoder({name: torch.tensor([1]) for name in names}).tolist() == [[0, 1] * 5]


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((84, 84, 3), 3),
        ((3, 84, 84), 3),
        ((84, 84, 12), 12),
        ((4, 84, 84), 4),
        ((210, 160, 3), 3),
        ((3, 210, 160), 3),
        ((7, 7, 20), 20),
        ((4, 4, 3), 3),
        ((2, 2, 1), 1),
    ],
)
def test_images_of_any_size_with_channels_first_or_last(shape, channels):
    encoder = make_features(encoder_space(shape))
    assert encoder.network[0].in_channels == channels
    for eyes in KINDS:
        check_shape(make_features(encoder_space(shape), eyes), shape)


def encoder_space(shape):
    return spaces.Box(0, 255, shape, np.uint8)


def check_shape(encoder, shape):
    image = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    found = encoder(image)
    assert found.shape == (2, 3, Image.width)
    torch.testing.assert_close(found[1, 2], encoder(image[1, 2]))


def test_a_transposed_image_gives_the_same_features():
    torch.manual_seed(0)
    last = make_features(IMAGE)
    first = copy.deepcopy(last)
    first.channels_last = False
    image = torch.randint(0, 256, (2, *IMAGE.shape), dtype=torch.uint8)
    torch.testing.assert_close(first(image.permute(0, 3, 1, 2)), last(image))


def test_only_bytes_in_three_dimensions_are_an_image():
    assert is_image(IMAGE)
    assert not is_image(spaces.Box(0, 1, (20, 24, 3)))
    assert not is_image(spaces.Box(0, 255, (20, 24), np.uint8))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2))])
def test_other_spaces_are_refused_by_name(space):
    for each in (space, spaces.Dict({"a": space}), spaces.Tuple((space,))):
        with pytest.raises(UserError, match=r"has no encoder; use Box, Discrete"):
            make_features(each)
