"""Heads by hand: what a loss is worth, which action comes out, in the action space's own units."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.agents.heads import make_head
from decision_s4.envs.errors import UserError


def head_giving(space: spaces.Space, outputs: list[float]):
    """A head whose linear map gives `outputs` whatever the features."""
    head = make_head(2, space)
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.tensor(outputs))
    return head


FEATURES = torch.zeros(1, 3, 2)  # (B, T, D)


def test_a_bounded_box_is_squashed_into_its_bounds():
    head = head_giving(spaces.Box(np.float32([-2, 10]), np.float32([2, 20])), [0.0, 100.0])
    assert head.act(FEATURES).tolist() == [[[0, 20]] * 3]
    loss = head.loss(FEATURES, torch.tensor([[[0.0, 20], [2, 20], [2, 10]]]))
    assert loss.tolist() == [[0, 0.5, 2.5]]  # in half ranges: 0, (1 + 0) / 2, (1 + 4) / 2


def test_an_unbounded_box_is_not_squashed():
    space = spaces.Box(np.float32([0, -np.inf]), np.float32([np.inf, np.inf]))
    head = head_giving(space, [7.0, -9.0])
    assert head.act(FEATURES[0, 0]).tolist() == [7, -9]
    assert head.loss(FEATURES[0], torch.tensor([[7.0, -7.0]] * 3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "centre", "reach"),
    [(-128, 127, np.int8, -0.5, 127.5), (100, 200, np.uint8, 150, 50), (3, 3, np.float32, 3, 1)],
)
def test_bounds_of_narrow_types_and_of_no_width(low, high, dtype, centre, reach):
    head = head_giving(spaces.Box(low, high, (1,), dtype), [0.0])
    assert (head.centre.item(), head.reach.item()) == (centre, reach)
    assert head.loss(FEATURES, torch.full((1, 3, 1), centre)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_a_box_of_any_shape(shape):
    head = make_head(2, spaces.Box(-1, 1, shape))
    action = head.act(FEATURES)
    assert action.shape == (1, 3, *shape)
    torch.testing.assert_close(head.loss(FEATURES, action), torch.zeros(1, 3))


def test_discrete_is_a_cross_entropy_over_its_own_numbers():
    head = head_giving(spaces.Discrete(3, start=5), [0.0, math.log(2), 0.0])
    assert head.act(FEATURES).tolist() == [[6, 6, 6]]
    loss = head.loss(FEATURES, torch.tensor([[5, 6, 7]]))
    expected = [[math.log(4), math.log(2), math.log(4)]]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_the_parts_of_a_multi_discrete_add_up():
    head = head_giving(spaces.MultiDiscrete([2, 3], start=[0, 1]), [0.0, 9.0, 0.0, 0.0, 9.0])
    assert head.act(FEATURES).tolist() == [[[1, 3]] * 3]
    uniform = head_giving(spaces.MultiDiscrete([2, 3]), [0.0] * 5)
    loss = uniform.loss(FEATURES, torch.zeros(1, 3, 2, dtype=torch.long))
    torch.testing.assert_close(loss, torch.full((1, 3), math.log(6)))


def test_a_multi_discrete_of_two_dimensions():
    head = head_giving(spaces.MultiDiscrete([[2, 2]]), [0.0, 1.0, 1.0, 0.0])
    assert head.act(FEATURES).tolist() == [[[[1, 0]]] * 3]


def test_samples_follow_the_logits():
    torch.manual_seed(0)
    head = head_giving(spaces.Discrete(3), [math.log(1), math.log(2), math.log(7)])
    samples = head.act(torch.zeros(5000, 2), deterministic=False)
    torch.testing.assert_close(
        samples.bincount() / 5000, torch.tensor([0.1, 0.2, 0.7]), atol=0.02, rtol=0
    )


def test_an_action_outside_the_space_is_refused():
    head = make_head(2, spaces.Discrete(3, start=1))
    for action in (0, 4):
        with pytest.raises(IndexError, match="out of bounds"):
            head.loss(FEATURES, torch.full((1, 3), action))


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.Dict({"a": spaces.Discrete(2)})])
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(UserError, match=r"has no head; use Box, Discrete or MultiDiscrete"):
        make_head(2, space)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(4, start=1), spaces.MultiDiscrete([2, 3])]
)
def test_no_steps_have_no_losses(space):
    """A process whose share of a batch is nothing asks for these."""
    head, action = make_head(2, space), torch.zeros(0, *space.shape, dtype=torch.long)
    assert head.loss(torch.zeros(0, 2), action).shape == (0,)
    assert head.act(torch.zeros(0, 2)).shape == (0, *space.shape)


def test_the_lowest_choice_lies_where_the_weights_do_and_is_not_saved():
    """A copy from elsewhere at each step would end the recording of a CUDA graph."""
    head = make_head(2, spaces.Discrete(3, start=-1))
    assert head.to("meta").lowest.device.type == "meta"
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}
