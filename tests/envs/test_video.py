"""A video is written frame by frame, or a warning is: a run never ends for it."""

import subprocess
import time

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_s4.envs import rendering, video
from decision_s4.envs.camera import Camera, Summary, captioned
from decision_s4.envs.errors import UserError
from decision_s4.envs.rendering import choose_renderer, probe
from decision_s4.envs.video import record


class PaintEnv(gym.Env):
    """Ten steps, each a frame of one grey; `broken` frames cannot be drawn."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None, broken=None, shape=(63, 101, 3)):
        self.render_mode, self.broken, self.shape = render_mode, broken, shape

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == 10, False, {}

    def render(self):
        if self.time == self.broken:
            raise OSError("no graphics\nat all")
        return np.full(self.shape, 20 * self.time, np.uint8)


gym.register("Paint-v0", entry_point=PaintEnv)


class Still:
    """Always the action 0, in any space."""

    def __init__(self, *shape):
        self.shape = shape

    def initial_state(self, batch_size):
        return None

    def act(self, step, state, deterministic=False):
        return torch.zeros((len(step.start), *self.shape), dtype=torch.int64), state


def test_every_step_is_a_frame(tmp_path):
    made = record(Still(), "Paint-v0", tmp_path / "new" / "a.mp4", 10.0, seed=0)
    frames = iio.imread(made.path)
    assert frames.shape == (11, 82, 102, 3)  # the caption below; height and width made even
    assert np.abs(frames[5, :60, :100].astype(int) - 100).max() < 6
    assert iio.immeta(made.path)["fps"] == 10
    assert made.episodes.returns.tolist() == [10]
    assert made.frames.shape == (11, 32, 51, 3)
    assert made.frames.dtype == np.uint8


def test_every_third_step_and_the_last_are_frames(tmp_path):
    made = record(Still(), "Paint-v0", tmp_path / "a.mp4", None, seed=0, every=3)
    assert len(iio.imread(made.path)) == 5  # steps 0, 3, 6, 9, 10


@pytest.mark.parametrize("broken", [0, 4])
def test_a_failing_renderer_warns_in_one_line(tmp_path, caplog, broken):
    path = tmp_path / "a.mp4"
    assert record(Still(), "Paint-v0", path, 1.0, 0, env_kwargs={"broken": broken}) is None
    assert not path.exists()
    assert [r.getMessage() for r in caplog.records] == [
        "no video of 'Paint-v0': OSError: no graphics at all"
    ]


def test_a_file_that_cannot_be_written_warns(tmp_path, caplog):
    (tmp_path / "folder").write_text("a file")
    assert record(Still(), "Paint-v0", tmp_path / "folder" / "a.mp4", 1.0, 0) is None
    assert len(caplog.records) == 1


def test_an_environment_that_cannot_draw_warns(tmp_path, caplog):
    assert record(Still(), "Paint-v0", tmp_path / "a.mp4", 1.0, 0, env_kwargs={"hue": 1}) is None
    assert "refuses" in caplog.text


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not end in \.mp4; name it 'a\.mp4'"):
        record(Still(), "Paint-v0", tmp_path / "a.avi", 1.0, 0)


def test_what_the_agent_raises_is_raised(tmp_path):
    with pytest.raises(ValueError, match="act gave"):
        record(Still(7), "Paint-v0", tmp_path / "a.mp4", 1.0, 0)


@pytest.fixture
def fresh_renderer(monkeypatch):
    """Forget which renderer works, before and after."""
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what the test sets is undone
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    choose_renderer.cache_clear()
    yield monkeypatch
    choose_renderer.cache_clear()


def test_a_renderer_that_fails_is_followed_by_the_next(fresh_renderer):
    fresh_renderer.setattr(rendering.sys, "platform", "linux")
    fresh_renderer.setattr(rendering, "probe", lambda name: "broken" if name == "egl" else None)
    assert choose_renderer() == "osmesa"
    assert rendering.os.environ["MUJOCO_GL"] == "osmesa"


def test_no_renderer_at_all_warns_once(fresh_renderer, tmp_path, caplog):
    fresh_renderer.setattr(rendering.sys, "platform", "linux")
    fresh_renderer.setattr(rendering, "probe", lambda name: f"no {name}")
    for _ in range(2):
        assert record(Still(3), "Hopper-v5", tmp_path / "a.mp4", 1.0, 0) is None
    assert [r.getMessage() for r in caplog.records] == [
        "no videos: MuJoCo cannot render here (egl: no egl; osmesa: no osmesa); "
        "apt-get install libegl1 or libosmesa6"
    ]


def test_a_persons_own_choice_is_the_only_one_tried(fresh_renderer, caplog):
    fresh_renderer.setenv("MUJOCO_GL", "vulkan")
    fresh_renderer.setattr(rendering, "probe", lambda name: f"no {name}")
    assert choose_renderer() is None
    assert "(vulkan: no vulkan); unset MUJOCO_GL" in caplog.text


def test_a_probe_gives_the_reason_in_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no libEGL\n")
    monkeypatch.setattr(rendering.subprocess, "run", lambda *a, **k: failed)
    assert probe("egl") == "ImportError: no libEGL"


def test_the_camera_follows_a_robot(tmp_path):
    if choose_renderer() is None:
        pytest.skip("no renderer for MuJoCo on this machine: install libegl1 or libosmesa6")
    env = video._open("HalfCheetah-v5", {}, (160, 120))
    env.reset(seed=0)
    here = env.render()
    position = env.unwrapped.data.qpos.copy()
    position[0] += 200  # a whole number of floor tiles, far beyond the model's own floor
    env.unwrapped.set_state(position, env.unwrapped.data.qvel.copy())
    there = env.render()
    env.close()
    assert np.abs(here.astype(int) - there).mean() < 3
    assert here.std() > 20


def test_an_environment_without_pictures_is_said_in_words(tmp_path, caplog):
    assert record(Still(), "TMaze-v0", tmp_path / "a.mp4", None, 0, max_steps=3) is None
    assert [r.getMessage() for r in caplog.records] == [
        "no video of 'TMaze-v0': it draws no pictures"
    ]


def test_an_environment_that_knows_no_render_mode_is_one_line(tmp_path, caplog, recwarn):
    class Blind(gym.Env):
        observation_space = action_space = spaces.Discrete(2)

    gym.register("Blind-v0", Blind)
    assert record(Still(), "Blind-v0", tmp_path / "a.mp4", None, 0) is None
    assert len(caplog.records) == 1 and "no video of 'Blind-v0': " in caplog.text
    assert not recwarn.list  # of Gymnasium


def test_hopper_is_filmed(tmp_path):
    if choose_renderer() is None:
        pytest.skip("no renderer for MuJoCo on this machine: install libegl1 or libosmesa6")
    made = record(Still(3), "Hopper-v5", tmp_path / "a.mp4", 3600.0, 0, max_steps=20)
    assert iio.imread(made.path).shape == (5, 258, 320, 3)  # steps 0, 5, 10, 15, 20: real time
    assert iio.immeta(made.path)["fps"] == 25


@pytest.mark.parametrize("added", [1, 60, 61, 1000])
def test_a_summary_is_short_and_even(added):
    summary = Summary()
    for i in range(added):
        summary.add(np.full((2, 2, 3), i % 256, np.uint8))
    assert 30 < len(summary.frames) <= 60 or len(summary.frames) == added
    assert len(summary.frames) == -(-added // summary.stride)


def test_a_caption_leaves_the_picture_alone():
    frame = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    both = captioned(frame, "target 3600    return 12    step 3")
    assert both.shape == (68, 60, 3)
    assert (both[:50] == frame).all()
    assert both[50:].max() > 150


def test_half_a_film_does_not_bear_its_name(tmp_path):
    path = tmp_path / "film.mp4"
    camera = Camera(gym.make("CartPole-v1", render_mode="rgb_array"), path, None)
    camera.reset(seed=0)
    while not list(tmp_path.iterdir()):  # ffmpeg, a process of its own, makes the file
        time.sleep(0.05)
    assert [p.name for p in tmp_path.iterdir()] == [".tmp-film.mp4"]
    camera.close()
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
