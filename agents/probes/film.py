"""A video that explains itself: below each frame, which past steps and inputs mattered now.

    frame | bars: relevance of the last steps, newest at the right, by modality
          | traces of return-to-go and actions up to now

The film is that of `record`; the map of each frame is gradient × input over the same episode.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.probes.base import Target
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.probes.recordings import Recording, play
from decision_s4.envs.task import Task
from decision_s4.envs.video import record

SHOWN = 32
"""Past steps of the strip."""
WIDTH = 640
"""Pixels that a smaller frame is enlarged towards: on its own scale letters are hard to read."""
STRIP = 320
"""Height of what is added below the frame, in pixels."""
COLOURS = {"return_to_go": "#a78bfa", "observation": "#38bdf8", "previous_action": "#fbbf24"}
LABELS = {
    "return_to_go": "return-to-go",
    "observation": "observation",
    "previous_action": "previous action",
}
LINES = ("#38bdf8", "#fb923c", "#a3e635", "#f472b6", "#e2e8f0", "#facc15")


def film_explained(policy: Policy, task: Task, folder: Path, seed: int) -> Iterator[Path]:
    """One MP4 a target return, explained-TARGET.mp4; none where no picture can be made."""
    recordings = play(policy, task, 1, seed)
    for target, aim, recording in zip(task.target_returns, task.aims, recordings, strict=True):
        plain, path = folder / f"plain-{target:g}.mp4", folder / f"explained-{target:g}.mp4"
        kwargs = task.env_kwargs
        if record(Actor(policy), task.env_id, plain, aim, seed, env_kwargs=kwargs) is None:
            return
        _annotate(policy, recording, recordings, plain, path)
        plain.unlink()
        yield path


def _annotate(
    policy: Policy, recording: Recording, others: list[Recording], source: Path, path: Path
) -> None:
    """Add the strip to each frame of `source`."""
    action = policy.action_features(recording.action).numpy()
    with imageio.get_reader(source) as reader:
        fps, frames = reader.get_meta_data()["fps"], [np.asarray(frame) for frame in reader]
    steps = np.linspace(0, recording.steps - 1, len(frames)).round().astype(int)
    relevance = np.stack([_strip(policy, recording, others, step) for step in steps.tolist()])
    scale = float(np.quantile(relevance.sum(-1).max(1), 0.95)) or 1.0
    writer = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2}
    with imageio.get_writer(path, fps=fps, **writer) as file:
        for frame, step, bars in zip(frames, steps.tolist(), relevance, strict=True):
            file.append_data(_drawn(frame, bars / scale, recording, action, step))


def _strip(policy: Policy, recording: Recording, others: list[Recording], step: int) -> np.ndarray:
    """(SHOWN, modalities) sizes of the last steps' relevance for the first action."""
    context = make_context(policy, recording, others, step, Target(0), window=SHOWN)
    values = GradientTimesInput().attribute(context).values.abs().numpy()
    parts = [values[:, context.slices[name]].sum(1) for name in MODALITIES]
    strip = np.stack(parts, 1)
    return np.concatenate([np.zeros((SHOWN - len(strip), strip.shape[1])), strip])


def _drawn(
    frame: np.ndarray, bars: np.ndarray, recording: Recording, action: np.ndarray, step: int
) -> np.ndarray:
    scale = max(1, round(WIDTH / frame.shape[1]))
    height, width = scale * frame.shape[0], scale * frame.shape[1]
    image = Image.new("RGB", (width, height + STRIP), (17, 24, 39))
    image.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=16)
    _draw_bars(draw, bars, height, width, font)
    to_go = recording.return_to_go.numpy()
    lines = [("return-to-go", to_go[:, None], ("#a78bfa",)), ("actions", action[:, :6], LINES)]
    for i, (name, values, colours) in enumerate(lines):
        top = height + 172 + 74 * i
        draw.text((14, top + 20), name, fill="#cbd5e1", font=font)
        _draw_lines(draw, values, step, (130, top, width - 14, top + 60), colours)
    return np.asarray(image)


def _draw_bars(
    draw: ImageDraw.ImageDraw, bars: np.ndarray, top: int, width: int, font: Any
) -> None:
    draw.text((14, top + 8), "what mattered now", fill="#e2e8f0", font=font)
    x = 190
    for name in MODALITIES:
        draw.rectangle((x, top + 12, x + 12, top + 24), fill=COLOURS[name])
        draw.text((x + 18, top + 8), LABELS[name], fill="#cbd5e1", font=font)
        x += 32 + int(draw.textlength(LABELS[name], font=font))
    step, base = (width - 28) / SHOWN, top + 134
    draw.text((width - 14, base + 4), "now", fill="#cbd5e1", font=font, anchor="ra")
    draw.text((14, base + 4), f"{SHOWN - 1} steps ago", fill="#cbd5e1", font=font)
    draw.line((14, base + 1, width - 14, base + 1), fill="#475569")
    for i, parts in enumerate(bars):
        y, size = base, min(1.0, parts.sum())
        for name, part in zip(MODALITIES, parts / max(parts.sum(), 1e-12), strict=True):
            end = y - 96 * size**0.5 * part  # root: the newest step would dwarf the others
            if y - end >= 0.5:
                left = 14 + i * step
                draw.rectangle((left, end, left + step - 3, y), fill=COLOURS[name])
            y = end


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    values: np.ndarray,
    step: int,
    box: tuple[int, int, int, int],
    colours: tuple[str, ...],
) -> None:
    """The last 100 steps, scaled by the whole episode."""
    left, top, right, bottom = box
    shown, low, high = values[max(0, step - 99) : step + 1], values.min(), values.max()
    x = right - (right - left) * np.arange(len(shown))[::-1] / 99
    y = bottom - (bottom - top) * (shown - low) / (high - low or 1)
    for column, colour in zip(y.T, colours, strict=False):
        if len(x) > 1:
            draw.line(list(zip(x.tolist(), column.tolist(), strict=True)), fill=colour, width=2)
