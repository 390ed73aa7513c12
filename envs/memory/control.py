"""Gymnasium's CartPole, Pendulum and MountainCarContinuous as arrays, seen without velocities.

Equations and constants are those of Gymnasium's environments, which the tests compare with.
"""

import math

import numpy as np
from gymnasium import spaces

from decision_s4.envs.memory.batch import Batch


class Control(Batch):
    """A mechanical system: `state` holds one row an episode, the velocities included."""

    size: int
    """Numbers in a state."""

    def __init__(self, count: int):
        super().__init__(count)
        self.state = np.zeros((count, self.size))


class CartPole(Control):
    """Push a cart left or right to keep its pole up; it sees the two positions."""

    size, max_steps = 4, 500
    farthest = np.array([4.8, math.radians(24)], np.float32)
    observation_space = spaces.Box(-farthest, farthest)
    action_space = spaces.Discrete(2)
    gravity, pole_mass, total_mass, half_length, force, dt = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    edge, tilt = 2.4, math.radians(12)

    def draw(self, row: int, generator: np.random.Generator) -> None:
        self.state[row] = generator.uniform(-0.05, 0.05, 4)

    def observe(self, rows: np.ndarray) -> np.ndarray:
        return self.state[rows][:, [0, 2]].astype(np.float32)

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, v, angle, turn = self.state[rows].T
        sine, cosine = np.sin(angle), np.cos(angle)
        pole = self.pole_mass * self.half_length
        push = (np.where(action == 1, self.force, -self.force) + pole * turn**2 * sine) / (
            self.total_mass
        )
        inertia = self.half_length * (4 / 3 - self.pole_mass * cosine**2 / self.total_mass)
        turning = (self.gravity * sine - cosine * push) / inertia
        speeding = push - pole * turning * cosine / self.total_mass
        change = np.stack([v, speeding, turn, turning], 1)
        self.state[rows] += self.dt * change  # Euler's method
        x, angle = self.state[rows][:, [0, 2]].T
        fell = (np.abs(x) > self.edge) | (np.abs(angle) > self.tilt)
        return np.ones(len(rows)), fell


class Pendulum(Control):
    """Swing a pendulum up by a torque in [-2, 2]; it sees where the pendulum points."""

    size, max_steps = 2, 200
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    gravity, dt, fastest = 10.0, 0.05, 8.0

    def draw(self, row: int, generator: np.random.Generator) -> None:
        high = np.array([np.pi, 1.0])
        self.state[row] = generator.uniform(-high, high)

    def observe(self, rows: np.ndarray) -> np.ndarray:
        angle = self.state[rows, 0]
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angle, turn = self.state[rows].T
        torque = np.clip(action[:, 0], -2, 2)
        upright = (angle + np.pi) % (2 * np.pi) - np.pi
        cost = upright**2 + 0.1 * turn**2 + 0.001 * torque**2
        turn = turn + (1.5 * self.gravity * np.sin(angle) + 3 * torque) * self.dt
        turn = np.clip(turn, -self.fastest, self.fastest)
        self.state[rows] = np.stack([angle + turn * self.dt, turn], 1)
        return -cost, np.zeros(len(rows), bool)


class MountainCar(Control):
    """Drive a weak car out of a valley; it sees its position."""

    size, max_steps = 2, 999
    observation_space = spaces.Box(-1.2, 0.6, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    power, fastest, lowest, highest, goal = 0.0015, 0.07, -1.2, 0.6, 0.45

    def draw(self, row: int, generator: np.random.Generator) -> None:
        self.state[row] = generator.uniform(-0.6, -0.4), 0.0

    def observe(self, rows: np.ndarray) -> np.ndarray:
        return self.state[rows, :1].astype(np.float32)

    def advance(self, rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, v = self.state[rows].T
        force = np.clip(action[:, 0], -1.0, 1.0)
        v = np.clip(v + force * self.power - 0.0025 * np.cos(3 * x), -self.fastest, self.fastest)
        x = np.clip(x + v, self.lowest, self.highest)
        v = np.where((x == self.lowest) & (v < 0), 0.0, v)
        self.state[rows] = np.stack([x, v], 1)
        there = (x >= self.goal) & (v >= 0)
        return 100.0 * there - 0.1 * action[:, 0].astype(np.float64) ** 2, there
