"""CartPole as a camera sees it: where cart and pole are, not how fast they move."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

SIZE, FINE = 24, 8  # pixels a side; drawn FINE times larger, so that fractions of one show
SHAPE = (SIZE, SIZE, 1)
EDGE = 2.4  # where an episode ends


def frame(state: np.ndarray) -> np.ndarray:
    """(24, 24, 1) bytes of a state (position, velocity, angle, angular velocity)."""
    size = SIZE * FINE
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    x, y = (float(state[0]) / EDGE + 1) * size / 2, 0.8 * size
    tip = (x + 0.7 * size * math.sin(state[2]), y - 0.7 * size * math.cos(state[2]))
    draw.line([(x, y), tip], fill=255, width=2 * FINE)
    draw.rectangle([x - 2 * FINE, y, x + 2 * FINE, y + 2 * FINE], fill=128)
    return np.asarray(image.reduce(FINE))[..., None]


class Pixels(gym.ObservationWrapper):
    """Shows `frame` in place of CartPole's state."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, SHAPE, np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return frame(observation)


def cart_pole(**options: Any) -> gym.Env:
    """CartPole-v1 in pixels."""
    return Pixels(gym.make("CartPole-v1", disable_env_checker=True, **options))
