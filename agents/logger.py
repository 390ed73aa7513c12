"""What a run tells: TensorBoard events, eval.csv, a progress report and a final table."""

import dataclasses
import io
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from rich.console import Console
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from decision_s4.agents.eval_table import (
    COLUMNS,
    Row,
    checked_row,
    print_table,
    read_rows,
    write_rows,
)
from decision_s4.agents.progress import ProgressReport
from decision_s4.agents.run_dir import EVAL_FILE

GIF_FPS = 25  # browsers slow down what claims more, and events stay small


class Logger:
    """Writes one run's folder; a context manager.

    `config` is the run's dataclass (or mapping): TensorBoard's HParams tab shows it. `step` is the
    step a run resumes from: what an interrupted run logged after it is dropped, curves and
    eval.csv continue. Raises UserError where eval.csv is not one or cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        config: Any,
        console: Console | None = None,
        step: int = 0,
    ) -> None:
        self.console = console or Console()
        self.eval_csv = Path(run_dir) / EVAL_FILE
        self.rows = read_rows(self.eval_csv, last_step=step)
        write_rows(self.eval_csv, self.rows)
        # purge_step is the first step to drop; values at `step` itself are not logged again.
        purge_step = step + 1 if step else None
        # Before its thread begins, which a full disk may end at once.
        self._excepthook, threading.excepthook = threading.excepthook, self._in_a_thread
        self.writer = SummaryWriter(str(run_dir), purge_step=purge_step, flush_secs=10)
        self.events: Any = self.writer.file_writer  # to torch's types, None
        self._log_hparams(config)
        self.laid_out = False
        self.report = ProgressReport(total_steps, step, self.console)

    def _log_hparams(self, config: Any) -> None:
        """The settings, in this very event file; TensorBoard finds the metrics by itself.

        (SummaryWriter.add_hparams would make a second run of them; a list of metrics, which
        summary.hparams also returns, would hide those of other algorithms.)
        """
        settings = dataclasses.is_dataclass(config) and not isinstance(config, type)
        values = dataclasses.asdict(config) if settings else dict(config)
        plain = {name: v if type(v) in (int, float) else str(v) for name, v in values.items()}
        _, start, _ = hparams(plain, {})
        self.events.add_summary(start)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars by their TensorBoard tags, such as `train/loss`."""
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, float(value), step)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, float | None]]) -> None:
        """One row a target return, with the columns of eval.csv but `step`; None where unknown.

        Goes to eval.csv and to the tags `eval/<target>/<column>` (without a target, as in online
        training, `eval/<column>`). Raises KeyError for a missing or unknown column.
        """
        fresh = [checked_row(step, row) for row in rows]
        self.rows += fresh
        write_rows(self.eval_csv, self.rows)
        self._lay_out([_place(row) for row in fresh])
        for row in fresh:
            tags = {f"{_place(row)}/{name}": row[name] for name in COLUMNS[3:]}
            self.log(step, {tag: value for tag, value in tags.items() if value is not None})
        self.writer.flush()

    def _lay_out(self, places: Sequence[str]) -> None:
        """TensorBoard's Custom Scalars tab: each target's mean return within its interval."""
        if not self.laid_out:
            ends = ("return_mean", "return_ci_low", "return_ci_high")
            charts = {place: ["Margin", [f"{place}/{end}" for end in ends]] for place in places}
            self.writer.add_custom_scalars({"mean return and its 95% interval": charts})
        self.laid_out = True

    def progress(self, step: int, **values: float) -> None:
        """Show how far the run is, with values such as `loss=` and `score=`."""
        self.report.update(step, values)

    def message(self, text: str) -> None:
        """Print one line for a person, above the bar."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown for TensorBoard's Text tab."""
        self.writer.add_text(tag, text, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture, uint8 (H, W, 3)."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def figure(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure, closed afterwards."""
        self.writer.add_figure(tag, figure, step)

    def video(self, tag: str, frames: np.ndarray, fps: float, step: int) -> None:
        """Frames, uint8 (T, H, W, 3), as an animated GIF that plays in the Images tab.

        Above 25 frames a second some are left out, so that it plays in real time. Raises
        ValueError for frames of another shape or dtype.
        """
        height, width = frames.shape[1:3] if frames.ndim == 4 else (0, 0)
        encoded = gif(frames, fps)
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded
        )
        self.events.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def flush(self) -> None:
        """Bring all events to the disk; before a checkpoint, or resumed curves have a gap."""
        self.writer.flush()

    def close(self) -> None:
        """Stop the report, print the evaluations and close the event file."""
        self.report.close()
        self.writer.close()
        if self.rows:
            print_table(self.console, self.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            threading.excepthook = self._excepthook

    def _in_a_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Leave out a full disk: the event writer's thread dies of it, then `log` raises it."""
        if not isinstance(failure.exc_value, OSError):
            self._excepthook(failure)


def _place(row: Row) -> str:
    """Below which TensorBoard has a target's evaluations."""
    target = row["target_return"]
    return "eval" if target is None else f"eval/{target:.12g}"


def gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless GIF of uint8 frames (T, H, W, 3), at most 25 frames a second."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"video: need uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
    stride = math.ceil(fps / GIF_FPS)
    first, *others = (Image.fromarray(frame) for frame in frames[::stride])
    file = io.BytesIO()
    duration = round(1000 * stride / fps)
    first.save(file, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return file.getvalue()
