"""An environment that films itself: frames go to a video file as they are drawn."""

import contextlib
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MOST_FPS = 30
MOST_KEPT = 60


class Camera(gym.Wrapper):
    """Films every `every`-th step, and the last one, into an MP4; None plays in real time.

    `failure` holds the first error in drawing or writing; filming stops there, the episode
    goes on. `close` completes the file, which has its name only then.
    """

    def __init__(
        self, env: gym.Env, path: Path, target_return: float | None, every: int | None = None
    ) -> None:
        super().__init__(env)
        steps_per_second = env.metadata.get("render_fps") or MOST_FPS
        self.every = every or math.ceil(steps_per_second / MOST_FPS)
        self.fps = max(1.0, steps_per_second / self.every)
        self.path, self.target_return = path, target_return
        self.unfinished = path.with_name(f".tmp-{path.name}")
        self.summary = Summary()
        self.failure: Exception | None = None
        self._file: Any = None

    def reset(self, **kwargs: Any) -> Any:
        """As the environment's, and the first frame."""
        result = self.env.reset(**kwargs)
        self.time, self.return_so_far = 0, 0.0
        self._guard(self._film)
        return result

    def step(self, action: Any) -> Any:
        """As the environment's, and perhaps a frame."""
        result = self.env.step(action)
        _, reward, terminated, truncated, _ = result
        self.time += 1
        self.return_so_far += float(reward)
        if self.time % self.every == 0 or terminated or truncated:
            self._guard(self._film)
        return result

    def close(self) -> None:
        """Complete the file; remove it where filming failed."""
        if self._file is not None:
            self._guard(self._file.close)
            self._guard(lambda: self.unfinished.replace(self.path))
            self._file = None
        if self.failure:
            with contextlib.suppress(OSError):
                self.unfinished.unlink()
        with contextlib.suppress(Exception):  # an OpenGL context may refuse to go
            self.env.close()

    def _guard(self, work: Any) -> None:
        if self.failure is None:
            try:
                work()
            except Exception as error:
                self.failure = error

    def _film(self) -> None:
        frame = self.env.render()
        if not isinstance(frame, np.ndarray):
            raise RuntimeError("the environment draws nothing with render_mode 'rgb_array'")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = imageio.get_writer(
                self.unfinished,
                fps=self.fps,
                codec="libx264",
                pixelformat="yuv420p",
                macro_block_size=2,
                ffmpeg_log_level="quiet",  # a failure is told in a line, see _guard
            )
        self._file.append_data(captioned(frame, self._caption()))
        self.summary.add(frame)

    def _caption(self) -> str:
        target = "" if self.target_return is None else f"target {round(self.target_return)}    "
        return f"{target}return {round(self.return_so_far)}    step {self.time}"


class Summary:
    """At most MOST_KEPT frames at half size, evenly spread over however many are added."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.stride, self.added = 1, 0

    def add(self, frame: np.ndarray) -> None:
        """Take an (H, W, 3) uint8 frame into account."""
        if self.added % self.stride == 0:
            if len(self.frames) == MOST_KEPT:
                self.frames, self.stride = self.frames[::2], 2 * self.stride
            self.frames.append(np.asarray(Image.fromarray(frame).reduce(2)))
        self.added += 1


def captioned(frame: np.ndarray, text: str) -> np.ndarray:
    """The (H, W, 3) uint8 frame above a dark strip that holds the text; even height and width."""
    height, width = frame.shape[:2]
    strip = max(18, height // 14)
    image = Image.new("RGB", (width + width % 2, 2 * math.ceil((height + strip) / 2)), (24, 24, 24))
    image.paste(Image.fromarray(frame))
    font = ImageFont.load_default(size=strip * 2 // 3)
    middle = (6, (height + image.height) // 2)
    ImageDraw.Draw(image).text(middle, text, fill="white", font=font, anchor="lm")
    return np.asarray(image)
