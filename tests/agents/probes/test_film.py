"""The strip below a frame: newest step at the right, and nothing of the frame is lost."""

from types import SimpleNamespace

import numpy as np
import torch

from decision_s4.agents.probes.film import COLOURS, SHOWN, STRIP, _drawn


def test_the_newest_steps_bar_stands_at_the_right():
    frame = np.full((120, 320, 3), 77, np.uint8)
    recording = SimpleNamespace(return_to_go=torch.linspace(10, 0, 50))
    bars = np.zeros((SHOWN, 3))
    bars[-1, 0] = 1.0
    drawn = _drawn(frame, bars, recording, np.zeros((50, 2)), 49)
    assert drawn.shape == (240 + STRIP, 640, 3)  # twice as large
    assert (drawn[:240] == 77).all()
    colour = np.array([int(COLOURS["return_to_go"][i : i + 2], 16) for i in (1, 3, 5)])
    bar = (drawn[240 + 50 : 240 + 130] == colour).all(-1).any(0)  # below the legend
    assert bar[-30:-20].all()
    assert not bar[:-36].any()
