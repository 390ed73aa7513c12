"""The README's picture, from a run: `python docs/picture.py RUN docs/hopper.png`.

Above: frames of the video of the highest target return. Below: what was returned when each target
was asked, over training, with the 95% interval of the mean, from eval.csv.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FRAMES, SECONDS = 8, 1.2  # about one hop
COLOURS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182")


def curves(run: Path) -> dict[float, np.ndarray]:
    """(steps, mean, low, high) of each target return, highest target first."""
    points = defaultdict(list)
    names = ("step", "return_mean", "return_ci_low", "return_ci_high")
    with (run / "eval.csv").open() as file:
        for row in csv.DictReader(file):
            points[float(row["target_return"])].append([float(row[name]) for name in names])
    return {target: np.array(points[target]).T for target in sorted(points, reverse=True)}


def draw_frames(axes: list[Axes], path: Path) -> None:
    """Frames at even times, from the middle of the video."""
    frames = imageio.imread(path)
    fps = imageio.immeta(path)["fps"]
    middle = len(frames) // 2
    for i, axis in enumerate(axes):
        frame = frames[min(len(frames) - 1, middle + round(i * SECONDS * fps / FRAMES))]
        width = frame.shape[1]
        axis.imshow(frame[:, width // 4 : -(width // 4)])
        axis.set_axis_off()


def draw_curves(axis: Axes, run: Path) -> None:
    """Return over updates, a line a target; the target itself dashed."""
    for colour, (target, (steps, mean, low, high)) in zip(
        COLOURS, curves(run).items(), strict=False
    ):
        axis.axhline(target, color=colour, linewidth=1, linestyle=(0, (4, 4)))
        axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(steps, mean, "o-", color=colour, linewidth=2, label=f"asked for {target:g}")
    axis.set(xlabel="updates", ylabel="return", ylim=(0, None))
    axis.legend(loc="lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def main(run: Path, picture: Path) -> None:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, FRAMES, height_ratios=(1, 1.6))
    videos = (run / "videos").glob("target-*.mp4")
    best = max(videos, key=lambda path: float(path.stem.removeprefix("target-")))
    draw_frames([figure.add_subplot(grid[0, i]) for i in range(FRAMES)], best)
    draw_curves(figure.add_subplot(grid[1, :]), run)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/picture.py RUN PICTURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
