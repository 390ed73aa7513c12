"""A video that explains itself: below each frame, which past steps and inputs mattered now.

    frame
    the inputs that pushed the first action up or down most | how much of it the past steps hold
    traces of return-to-go and actions up to now

The film is that of `record`; the map of each frame is of one method over the same episode.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.probes.base import AttributionProbe, Probe, targets_of
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.probes.layer_probes import LayerAttribution
from decision_s4.agents.probes.recordings import Recording, play
from decision_s4.agents.probes.report import feature_names, target_name
from decision_s4.envs.feature_names import action_names
from decision_s4.envs.task import Task
from decision_s4.envs.video import record

SHOWN = 32
"""Steps of the strip, the present one included."""
LISTED, ROW = 6, 23
"""Inputs named: those that matter most over the film, in one order for all frames, or nobody could
follow a bar; and the height of each."""
WIDTH = 640
"""Pixels that a smaller frame is enlarged towards: on its own scale letters are hard to read."""
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
    to_go: np.ndarray
    """(T,)"""
    action: np.ndarray
    """(T, A)"""
    listed: Sequence[int]
    """Features with a bar, the largest first."""
    largest: float
    """Of an input's summed relevance, over the film."""
    largest_before: float
    """Of a past step's relevance, over the film."""


def film_explained(
    policy: Policy, task: Task, folder: Path, seed: int, probes: Sequence[Probe] = ()
) -> Iterator[Path]:
    """One MP4 a target return, explained-TARGET.mp4, by the first of `probes` that is quick and
    tells inputs apart, else by gradient × input; none where no picture can be made."""
    recordings = play(policy, task, 1, seed)
    for target, aim, recording in zip(task.target_returns, task.aims, recordings, strict=True):
        plain, path = folder / f"plain-{target:g}.mp4", folder / f"explained-{target:g}.mp4"
        kwargs = task.env_kwargs
        if record(Actor(policy), task.env_id, plain, aim, seed, env_kwargs=kwargs) is None:
            return
        _annotate(policy, task.env_id, recording, recordings, _chosen(probes), plain, path)
        plain.unlink()
        yield path


def _chosen(probes: Sequence[Probe]) -> AttributionProbe:
    for probe in probes:
        tells = isinstance(probe, AttributionProbe) and not isinstance(probe, LayerAttribution)
        if tells and probe.cheap:
            return probe
    return GradientTimesInput()


def _annotate(
    policy: Policy,
    env_id: str,
    recording: Recording,
    others: list[Recording],
    probe: AttributionProbe,
    source: Path,
    path: Path,
) -> None:
    """Add the strip to each frame of `source`."""
    with imageio.get_reader(source) as reader:
        fps, frames = reader.get_meta_data()["fps"], [np.asarray(frame) for frame in reader]
    steps = np.linspace(0, recording.steps - 1, len(frames)).round().astype(int).tolist()
    found = [_map(policy, recording, others, probe, step) for step in steps]
    maps, answers = np.stack([values for values, _ in found]), [answer for _, answer in found]
    story = _story(policy, env_id, recording, probe, maps)
    writer = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2}
    with imageio.get_writer(path, fps=fps, **writer) as file:
        for frame, step, values, answer in zip(frames, steps, maps, answers, strict=True):
            file.append_data(_drawn(frame, values, answer, story, step))


def _map(
    policy: Policy,
    recording: Recording,
    others: list[Recording],
    probe: AttributionProbe,
    step: int,
) -> tuple[np.ndarray, float]:
    """(SHOWN, F) relevance of the last steps' inputs for the first target, and this."""
    context = make_context(policy, recording, others, step, targets_of(policy)[0], window=SHOWN)
    values = probe.attribute(context).values[-SHOWN:].numpy()
    earlier = np.zeros((SHOWN - len(values), values.shape[1]))
    return np.concatenate([earlier, values]), context.prediction


def _story(
    policy: Policy, env_id: str, recording: Recording, probe: AttributionProbe, maps: np.ndarray
) -> Story:
    action = policy.action_features(recording.action).numpy()
    sums, parts = np.abs(maps.sum(1)), policy.token_map(1)
    before = np.abs(maps[:, :-1]).sum(-1).max(1)
    return Story(
        target_name(policy, env_id, targets_of(policy)[0]),
        probe.name,
        feature_names(policy, env_id),
        [part.modality for part in parts for _ in range(*part.features.indices(maps.shape[-1]))],
        action_names(env_id, policy.action_space, policy.head.linear.out_features),
        recording.return_to_go.numpy(),
        action,
        np.argsort(-sums.mean(0))[:LISTED].tolist(),
        float(np.quantile(sums.max(1), 0.95)) or 1.0,
        float(np.quantile(before, 0.95)) or 1.0,
    )


def _drawn(
    frame: np.ndarray, values: np.ndarray, answer: float, story: Story, step: int
) -> np.ndarray:
    scale = max(1, round(WIDTH / frame.shape[1]))
    height, width = scale * frame.shape[0], scale * frame.shape[1]
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
    names = ["return-to-go", *story.actions[: len(LINES)]]
    lines = [(names[:1], story.to_go[:, None], (COLOURS["return_to_go"],))]
    lines += [(names[1:], story.action[:, : len(LINES)], LINES)]
    for i, (shown, series, colours) in enumerate(lines):
        top = height + 200 + 74 * i
        _draw_names(draw, shown, colours, top)
        _draw_lines(draw, series, step, (150, top, width - 14, top + 60), colours)
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
    """The last 100 steps, scaled by the whole episode."""
    left, top, right, bottom = box
    shown, low, high = values[max(0, step - 99) : step + 1], values.min(), values.max()
    x = right - (right - left) * np.arange(len(shown))[::-1] / 99
    y = bottom - (bottom - top) * (shown - low) / (high - low or 1)
    for column, colour in zip(y.T, colours, strict=False):
        if len(x) > 1:
            draw.line(list(zip(x.tolist(), column.tolist(), strict=True)), fill=colour, width=2)
