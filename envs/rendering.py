"""A MuJoCo renderer that works on this machine, found without risk to this process."""

import functools
import logging
import os
import subprocess
import sys
import tempfile
from typing import Any

import gymnasium as gym
import numpy as np

LOG = logging.getLogger(__name__)

# In a process of its own: a renderer that fails may abort it, and bars the next one in any case.
PROBE = """
import gymnasium
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=16, height=16)
env.reset(seed=0)
assert env.render().max() > 0
env.close()
"""


@functools.cache
def choose_renderer() -> str | None:
    """Name of the first renderer that draws a frame, also set as MUJOCO_GL; None if none does.

    A person's own MUJOCO_GL is the only one tried. Otherwise a screen's GLFW, then EGL, then
    OSMesa. Tried once a process, about a second each. Logs one warning line if all fail.
    """
    asked = os.environ.get("MUJOCO_GL")
    choices = [asked] if asked else ["glfw"] * has_screen() + ["egl", "osmesa"]
    reasons = []
    for name in choices:
        reason = probe(name)
        if reason is None:
            os.environ["MUJOCO_GL"] = name
            return name
        reasons.append(f"{name}: {reason}")
    fix = "unset MUJOCO_GL" if asked else "apt-get install libegl1 or libosmesa6"
    LOG.warning("no videos: MuJoCo cannot render here (%s); %s", "; ".join(reasons), fix)
    return None


def has_screen() -> bool:
    """Whether windows can be opened."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def probe(name: str) -> str | None:
    """Why the renderer cannot draw a frame; None if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | {"MUJOCO_GL": name},
            cwd=tempfile.gettempdir(),  # MuJoCo writes its log where it runs
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1][:120]


def draw_plainly(env: gym.Env) -> None:
    """Leave out shadows, reflections and smoothed edges: ten times faster without a GPU.

    Concerns pictures alone, and only before the first of them.
    """
    model = _simulation(env).model
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.mat_reflectance[:] = 0


def extend_floor(env: gym.Env) -> None:
    """Draw planes without end: a robot runs out of what Gymnasium's models show of their floor.

    MuJoCo lets bodies collide with the whole plane in any case.
    """
    import mujoco

    model = _simulation(env).model
    for plane in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        size, material = model.geom_size[plane, :2], model.geom_matid[plane]
        if material != -1 and not model.mat_texuniform[material] and size.all():
            model.mat_texuniform[material] = True  # tiles a metre, in place of tiles a plane
            model.mat_texrepeat[material] /= size
        size[:] = 0


def follow(env: gym.Env) -> None:
    """Use the model's own tracking camera, unless another was asked for.

    Gymnasium 1.4 looks from a fixed point where none is named, and a robot runs out of the picture.
    """
    import mujoco

    renderer, model = _simulation(env).mujoco_renderer, _simulation(env).model
    track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if renderer.camera_id == -1 and track != -1:
        renderer.camera_id = track


def _simulation(env: gym.Env) -> Any:
    """MuJoCo's environment under the wrappers: its parts are no part of Gymnasium's types."""
    return env.unwrapped
