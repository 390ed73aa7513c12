"""MP4 videos of an agent's episodes, without a screen."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from decision_s4.envs.camera import Camera
from decision_s4.envs.errors import UserError
from decision_s4.envs.local_rows import LocalRows
from decision_s4.envs.make import make, registered_spec, uses_mujoco
from decision_s4.envs.rendering import (
    choose_renderer,
    draw_plainly,
    extend_floor,
    follow,
    has_screen,
)
from decision_s4.envs.rollout import Episodes, play
from decision_s4.envs.timestep import Agent

LOG = logging.getLogger(__name__)


class Video(NamedTuple):
    """A recorded episode, with a small summary of it for a dashboard."""

    path: Path
    frames: np.ndarray  # (T, H, W, 3) uint8, T at most 60, half the video's size, no caption
    fps: float  # at which `frames` last as long as the video
    episodes: Episodes  # of one row


def record(
    agent: Agent,
    env_id: str,
    path: str | Path,
    target_return: float | None,
    seed: int,
    max_steps: int | None = 1000,
    size: tuple[int, int] = (320, 240),
    every: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    deterministic: bool = True,
) -> Video | None:
    """Play one episode as `rollout` does and write it to `path` as H.264 MP4.

    `size` is (width, height) in pixels of a MuJoCo picture; others draw in their own. Every
    `every`-th step is a frame; None picks the fewest skips that play in real time at no more than
    30 frames a second. Returns None, after a warning line in the log, where no picture can be
    made: a run never ends for a video. What the agent or the environment raises is raised, and
    UserError for a path that is not of an MP4.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"video path '{path}' does not end in .mp4; name it '{path.stem}.mp4'")
    env = _open(env_id, env_kwargs or {}, size)
    if env is None:
        return None
    camera = Camera(env, path, target_return, every)
    try:
        rows = LocalRows(lambda: camera, [0])
        episodes = play(agent, rows, [target_return], [seed], max_steps, deterministic)
    finally:
        camera.close()
    if camera.failure:
        _warn(env_id, camera.failure)
        return None
    summary = camera.summary
    return Video(path, np.stack(summary.frames), camera.fps / summary.stride, episodes)


def _open(env_id: str, env_kwargs: dict[str, Any], size: tuple[int, int]) -> gym.Env | None:
    """The environment, able to draw; None after a warning where it is not."""
    mujoco = uses_mujoco(registered_spec(env_id))
    if mujoco and choose_renderer() is None:
        return None
    if not has_screen():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # or pygame complains of there being none
    picture = {"width": size[0], "height": size[1]} if mujoco else {}
    try:
        with warnings.catch_warnings(action="ignore"):  # of Gymnasium, where it cannot draw
            env = make(env_id, render_mode="rgb_array", **(picture | env_kwargs))
        if mujoco:
            draw_plainly(env)
            extend_floor(env)
            follow(env)
    except Exception as error:
        _warn(env_id, error)
        return None
    return env


def _warn(env_id: str, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, NotImplementedError):  # Gymnasium's own, without a word
        reason = "it draws no pictures"
    LOG.warning("no video of '%s': %s", env_id, reason)
