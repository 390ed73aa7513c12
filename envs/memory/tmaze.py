"""The T-maze: a sign at the entrance says which way to turn at the corridor's far end.

The passive T-maze of Ni, Ma, Eysenbach and Bacon, "When Do Transformers Shine in RL?", arXiv
2307.03864, section 4.1: an episode has `length` + 1 steps, a step behind the straightest way costs
1 / length, the right turn at the end earns 1. So memory is all that is hard: without it the best
mean return is 1/2. The idea is Bakker's (NIPS 2001).
"""

import numpy as np
from gymnasium import spaces

from decision_s4.envs.memory.batch import Batch, check_size

LEFT, RIGHT, UP, DOWN = range(4)
NOTHING, SIGN_UP, SIGN_DOWN, JUNCTION = range(4)


class TMaze(Batch):
    """It sees nothing in the corridor, the sign at its entrance, the junction at its end."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(4)

    def __init__(self, count: int, length: int = 100):
        super().__init__(count)
        check_size("length", length, 1)
        self.length = length
        self.place, self.goal = np.zeros((2, count), np.int64)

    def draw(self, row: int, generator: np.random.Generator) -> None:
        self.place[row], self.goal[row] = 0, generator.choice((UP, DOWN))

    def observe(self, rows: np.ndarray) -> np.ndarray:
        place = self.place[rows]
        sign = np.where(self.goal[rows] == UP, SIGN_UP, SIGN_DOWN)
        seen = np.where(place == self.length, JUNCTION, NOTHING)
        return np.where(place == 0, sign, seen)

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time, last = self.time[rows], self.time[rows] == self.length
        right = last & (self.place[rows] == self.length) & (action == self.goal[rows])
        move = (action == RIGHT).astype(np.int64) - (action == LEFT)
        self.place[rows] = np.clip(self.place[rows] + move, 0, self.length)
        behind = ~last & (self.place[rows] < time + 1)
        return right - behind / self.length, last
