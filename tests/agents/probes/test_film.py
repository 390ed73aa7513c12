"""The strip below a frame: what mattered by name and by step, and nothing of the frame is lost."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from planted import new_policy

from decision_s4.agents.probes.base import make_probes
from decision_s4.agents.probes.film import _chosen, _map, _story
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.probes.recordings import made
from decision_s4.agents.probes.strip import COLOURS, DOWN, SHOWN, STRIP, UP, Story
from decision_s4.agents.probes.strip import drawn as drawn_below

HEIGHT = 240
FEATURES = ["return-to-go", "torso angle", "leg angle", "previous torque"]
MODALITY = ["return_to_go", "observation", "observation", "previous_action"]


def drawn(values: np.ndarray) -> np.ndarray:
    """The strip alone."""
    to_go, action = np.linspace(10, 0, 50), np.zeros((50, 1))
    names = "torque", "lrp", FEATURES, MODALITY, ["torque"]
    story = Story(*names, to_go, action, [2, 1, 0, 3], 2.0, 1.0)
    frame = np.full((HEIGHT // 2, 320, 3), 77, np.uint8)
    found = drawn_below(frame, values, 0.5, story, 49)
    assert found.shape == (HEIGHT + STRIP, 640, 3)  # twice as large
    assert (found[:HEIGHT] == 77).all()
    return found[HEIGHT:]


def places(strip: np.ndarray, colour: str) -> np.ndarray:
    """(N, 2) rows and columns of a colour, below the legends and above the traces."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    found = np.argwhere((strip == wanted).all(-1))
    return found[(found[:, 0] > 44) & (found[:, 0] < 170)]


def test_the_step_before_now_stands_at_the_right():
    values = np.zeros((SHOWN, len(FEATURES)))
    values[-2, 0] = 1.0
    bar = places(drawn(values), COLOURS["return_to_go"])[:, 1]
    assert 610 < bar.min() < bar.max() <= 626
    values[-2, 0], values[0, 0] = 0.0, 1.0
    assert places(drawn(values), COLOURS["return_to_go"])[:, 1].max() < 370


def test_what_pushed_up_is_red_and_in_the_order_of_the_film():
    values = np.zeros((SHOWN, len(FEATURES)))
    values[-1, 1], values[-3:, 2] = -1.0, 0.5
    strip = drawn(values)
    up, down = places(strip, UP), places(strip, DOWN)
    up, down = (each[each[:, 0] < 126] for each in (up, down))  # the scale has the same colours
    assert up[:, 0].max() < down[:, 0].min()  # leg angle before torso angle
    assert up[:, 1].min() > down[:, 1].max()  # to the right of 0 and to the left
    assert np.ptp(up[:, 1]) == pytest.approx(1.5 * np.ptp(down[:, 1]), abs=2)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("hidden-attention,lrp", "lrp"),  # which tells inputs apart
        ("integrated-gradients,tensorlens", "tensorlens"),  # which is quick
        ("hidden-attention,occlusion", "gradient-x-input"),
    ],
)
def test_the_film_is_by_what_was_asked_for_where_it_can_be(asked, chosen):
    assert _chosen(make_probes(asked.split(","), new_policy("s4"))).name == chosen


def test_discrete_actions_are_explained_by_their_first_logit():
    probe, policy = GradientTimesInput(), new_policy("s4", hand=spaces.Discrete(3)).float()
    recordings = [
        made(
            policy, str(i), torch.randn(40, 3), torch.arange(40) % 3, torch.rand(40), torch.ones(40)
        )
        for i in range(2)
    ]
    values, answer = _map(policy, recordings[0], recordings[1:], probe, 20)
    assert (values[: SHOWN - 21] == 0).all() and np.abs(values[-1]).max() > 0
    story = _story(policy, None, recordings[0], probe, values[None])
    assert len(story.features) == len(story.modality) == values.shape[1]
    assert drawn_below(np.zeros((50, 320, 3), np.uint8), values, answer, story, 20).shape[1] == 640


def test_a_frame_that_is_too_narrow_for_the_legends_is_enlarged():
    values = np.zeros((SHOWN, len(FEATURES)))
    names = "torque", "lrp", FEATURES, MODALITY, ["torque"]
    story = Story(*names, None, np.zeros((50, 1)), [2, 1, 0, 3], 2.0, 1.0)
    found = drawn_below(np.full((480, 500, 3), 77, np.uint8), values, 0.5, story, 49)
    assert found.shape == (614 + STRIP, 640, 3)
