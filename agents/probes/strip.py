"""What stands below a frame of a film: which inputs pushed the action, and from when they are.

Shapes: T steps of the episode, F features, A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decision_s4.agents.policy import MODALITIES

SHOWN = 32
"""Steps of the strip, the present one included."""
LISTED, ROW = 6, 23
"""Inputs named: those that matter most over the film, in one order for all frames, or nobody could
follow a bar; and the height of each."""
WIDTH = 640
"""Pixels that a smaller frame is enlarged to: legends have no room on less."""
BACK = 100
"""Steps of the traces."""
STRIP = 360
"""Height of what is added below the frame, in pixels."""
COLOURS = {"return_to_go": "#a78bfa", "observation": "#38bdf8", "previous_action": "#fbbf24"}
LABELS = {
    "return_to_go": "return-to-go",
    "observation": "observation",
    "previous_action": "previous action",
}
UP, DOWN = "#f87171", "#60a5fa"
LINES = ("#38bdf8", "#fb923c", "#a3e635", "#f472b6", "#e2e8f0", "#facc15")
SOFT, INK, RULE = "#cbd5e1", "#f1f5f9", "#475569"


@dataclass(frozen=True)
class Story:
    """What all frames of a film share."""

    asked: str
    """What is explained: an action's first dimension, or a logit."""
    method: str
    features: Sequence[str]
    """(F,) names."""
    modality: Sequence[str]
    """(F,) of each feature."""
    actions: Sequence[str]
    """Names of the action's dimensions."""
    to_go: np.ndarray | None
    """(T,) of a policy that reads it."""
    action: np.ndarray
    """(T, A)"""
    listed: Sequence[int]
    """Features with a bar, the largest first."""
    largest: float
    """Of an input's summed relevance, over the film."""
    largest_before: float
    """Of a past step's relevance, over the film."""


def drawn(
    frame: np.ndarray, values: np.ndarray, answer: float, story: Story, step: int
) -> np.ndarray:
    scale = max(1.0, WIDTH / frame.shape[1])
    height, width = (2 * round(scale * side / 2) for side in frame.shape[:2])  # codecs want even
    image = Image.new("RGB", (width, height + STRIP), (17, 24, 39))
    image.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
    draw, middle = ImageDraw.Draw(image), int(0.54 * width)
    draw.text(
        (14, height + 8),
        f"why {story.asked} {answer:+.2f}? ({story.method})",
        fill=INK,
        font=_font(16),
    )
    _draw_inputs(draw, values.sum(0), story, (14, height + 36, middle - 16))
    _draw_steps(draw, values, story, (middle, height + 36, width - 14, height + 172))
    actions = story.actions[: len(LINES)], story.action[:, : len(LINES)]
    lines: list[tuple[Sequence[str], np.ndarray, tuple[str, ...]]] = [(*actions, LINES)]
    if story.to_go is not None:
        lines.insert(0, (["return-to-go"], story.to_go[:, None], (COLOURS["return_to_go"],)))
    for i, (shown, series, colours) in enumerate(lines):
        top = height + 200 + 74 * i
        _draw_names(draw, shown, colours, top)
        _draw_lines(draw, series, step, (196, top, width - 14, top + 60), colours)
    draw.text(
        (width - 14, top + 66), f"the last {BACK} steps", fill=SOFT, font=_font(12), anchor="ra"
    )
    return np.asarray(image)


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _draw_inputs(
    draw: ImageDraw.ImageDraw, sums: np.ndarray, story: Story, box: tuple[int, int, int]
) -> None:
    """The listed inputs with what each added, over the steps shown."""
    left, top, right = box
    middle = right - 76
    for i, f in enumerate(story.listed):
        y, size = top + ROW * i, 72 * min(1.0, abs(sums[f]) / story.largest)
        draw.text((left, y), story.features[f][:22], fill=SOFT, font=_font(14))
        ends = (middle, middle + size) if sums[f] > 0 else (middle - size, middle)
        if size >= 1:
            draw.rectangle((ends[0], y + 2, ends[1], y + 15), fill=UP if sums[f] > 0 else DOWN)
    draw.line((middle, top, middle, top + ROW * len(story.listed) - 4), fill=RULE)
    y = top + ROW * len(story.listed) - 2
    draw.text((middle - 6, y), "pushed down", fill=DOWN, font=_font(12), anchor="ra")
    draw.text((middle + 6, y), "pushed up", fill=UP, font=_font(12))


def _draw_steps(
    draw: ImageDraw.ImageDraw, values: np.ndarray, story: Story, box: tuple[int, int, int, int]
) -> None:
    """How much of all relevance the present step holds; and the steps before it, enlarged."""
    left, top, right, base = box
    sizes = np.abs(values)
    share = sizes[-1].sum() / max(sizes.sum(), 1e-12)
    said = f"now {share:.{'1' if share > 0.99 else '0'}%}; the steps before, enlarged:"
    draw.text((left, top - 28), said, fill=INK, font=_font(14))
    width, high = (right - left) / (SHOWN - 1), base - top - 18
    for i, step in enumerate(sizes[:-1]):
        y = base
        for name in MODALITIES:
            part = step[[each == name for each in story.modality]].sum()
            end = max(top, y - high * part / story.largest_before)
            if y - end >= 0.5:
                x = left + i * width
                draw.rectangle((x, end, x + width - 2, y), fill=COLOURS[name])
            y = end
    draw.line((left, base + 1, right, base + 1), fill=RULE)
    draw.text((left, base + 4), f"{SHOWN - 1} steps ago", fill=SOFT, font=_font(12))
    draw.text((right, base + 4), "1", fill=SOFT, font=_font(12), anchor="ra")
    x = left
    for name in MODALITIES:
        draw.rectangle((x, top - 5, x + 9, top + 4), fill=COLOURS[name])
        draw.text((x + 13, top - 8), LABELS[name], fill=SOFT, font=_font(12))
        x += 26 + int(draw.textlength(LABELS[name], font=_font(12)))


def _draw_names(
    draw: ImageDraw.ImageDraw, names: Sequence[str], colours: Sequence[str], top: int
) -> None:
    """One below the other, smaller where there are more than three."""
    row, size, most = (18, 14, 18) if len(names) <= 3 else (11, 10, 25)
    for i, name in enumerate(names):
        draw.text((14, top + 4 + row * i), name[:most], fill=colours[i], font=_font(size))


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    values: np.ndarray,
    step: int,
    box: tuple[int, int, int, int],
    colours: tuple[str, ...],
) -> None:
    """The last steps, scaled by the whole episode, whose least and largest value stand beside."""
    left, top, right, bottom = box
    shown, low, high = values[max(0, step + 1 - BACK) : step + 1], values.min(), values.max()
    for value, y, anchor in ((high, top, "rt"), (low, bottom, "rs")):
        draw.text((left - 6, y), f"{value:.4g}", fill=SOFT, font=_font(12), anchor=anchor)
    x = right - (right - left) * np.arange(len(shown))[::-1] / (BACK - 1)
    y = bottom - (bottom - top) * (shown - low) / (high - low or 1)
    for column, colour in zip(y.T, colours, strict=False):
        if len(x) > 1:
            draw.line(list(zip(x.tolist(), column.tolist(), strict=True)), fill=colour, width=2)
