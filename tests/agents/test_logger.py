"""A run's log as TensorBoard reads it: tags, hyper-parameters, GIFs, curves that continue."""

import io
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from decision_s4.agents import progress
from decision_s4.agents.eval_table import COLUMNS
from decision_s4.agents.logger import Logger
from decision_s4.envs.errors import UserError


@dataclass(frozen=True)
class Settings:
    algo: str = "tortoise"
    lr: float = 0.5
    video: bool = True
    target_returns: tuple[float, ...] = (3600.0, 1800.0)
    limit: int | None = None


def logger(run_dir: Path, **options) -> Logger:
    return Logger(run_dir, 100, Settings(), Console(file=io.StringIO(), width=100), **options)


def printed(log: Logger) -> list[str]:
    return log.console.file.getvalue().splitlines()


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0}).Reload()


def evaluated(target: float | None, mean: float) -> dict[str, float | None]:
    row = dict.fromkeys(COLUMNS[2:], 1.0) | {"target_return": target, "return_mean": mean}
    return row | {"normalized_score": None}


def test_scalars_text_and_pictures(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.log(1, {"train/loss": 0.5, "time/timesteps_per_s": 100})
        log.log(2, {"train/loss": np.float32(0.25)})
        log.text("notes", "**bold**", 2)
        log.image("probe/attention", np.zeros((4, 6, 3), np.uint8), 2)
    tags = events(tmp_path)
    assert [(e.step, e.value) for e in tags.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert tags.Tags()["images"] == ["probe/attention"]
    assert tags.Tags()["tensors"] == ["notes/text_summary"]


def test_hyper_parameters_stand_in_the_same_folder(tmp_path: Path) -> None:
    logger(tmp_path).close()
    assert [path.is_dir() for path in tmp_path.iterdir()] == [False, False]
    content = events(tmp_path).PluginTagToContent("hparams")
    data = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    told = data.session_start_info.hparams
    assert told["lr"].number_value == 0.5
    texts = {name: told[name].string_value for name in told if name != "lr"}
    expected = {"algo": "tortoise", "video": "True", "limit": "None"}
    assert texts == expected | {"target_returns": "(3600.0, 1800.0)"}


@pytest.mark.parametrize(
    ("fps", "shown", "last", "milliseconds"), [(10, 12, 11, 100), (125, 3, 10, 40)]
)
def test_a_video_is_a_gif_in_real_time(
    tmp_path: Path, fps: float, shown: int, last: int, milliseconds: int
) -> None:
    frames = np.zeros((12, 8, 10, 3), np.uint8)
    frames[:] = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    with logger(tmp_path) as log:
        log.video("eval/3600/video", frames, fps, step=7)
    (event,) = events(tmp_path).Images("eval/3600/video")
    assert (event.step, event.height, event.width) == (7, 8, 10)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", shown, (10, 8))
    assert (gif.info["duration"], gif.info["loop"]) == (milliseconds, 0)
    gif.seek(shown - 1)
    assert gif.convert("RGB").getpixel((0, 0)) == (last * 20,) * 3


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 1)])
def test_what_is_no_video_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with logger(tmp_path) as log, pytest.raises(ValueError, match=r"need uint8 \(T, H, W, 3\)"):
        log.video("v", np.zeros(shape, np.uint8), 30, step=1)


def test_evaluations_go_to_the_file_the_curves_and_the_table(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.evaluation(10, [evaluated(3600.0, 5.0), evaluated(-0.5, 6.0)])
        log.evaluation(20, [evaluated(None, 7.0)])
    tags = events(tmp_path)
    assert [e.value for e in tags.Scalars("eval/3600/return_mean")] == [5.0]
    assert [e.value for e in tags.Scalars("eval/-0.5/return_mean")] == [6.0]
    assert [(e.step, e.value) for e in tags.Scalars("eval/return_mean")] == [(20, 7.0)]
    assert "eval/return_mean" in tags.Tags()["scalars"]
    assert "eval/normalized_score" not in tags.Tags()["scalars"]
    assert len((tmp_path / "eval.csv").read_text().splitlines()) == 4
    assert printed(log)[-1].split()[:6] == ["20", "-", "1", "7", "±", "1"]


def test_each_target_has_a_chart_of_its_return_within_its_interval(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        log.evaluation(10, [evaluated(3600.0, 5), evaluated(-0.5, 6)])
        log.evaluation(20, [evaluated(3600.0, 7), evaluated(-0.5, 8)])
    (event,) = events(tmp_path).Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    assert [chart.title for chart in category.chart] == ["eval/3600", "eval/-0.5"]
    (series,) = category.chart[0].margin.series
    assert series.value == "eval/3600/return_mean"
    assert (series.lower, series.upper) == ("eval/3600/return_ci_low", "eval/3600/return_ci_high")


def test_a_resumed_run_continues_its_curves_and_rows(tmp_path: Path) -> None:
    with logger(tmp_path) as log:
        for step in (10, 20, 30, 40):
            log.log(step, {"train/loss": step})
            log.evaluation(step, [evaluated(None, step)])
    time.sleep(1.1)  # event files are ordered by the second in their names
    with logger(tmp_path, step=20) as log:
        assert [row["step"] for row in log.rows] == [10, 20]
        log.log(30, {"train/loss": -30})
        log.evaluation(30, [evaluated(None, -30)])
    losses = events(tmp_path).Scalars("train/loss")
    assert [(e.step, e.value) for e in losses] == [(10, 10), (20, 20), (30, -30)]
    lines = (tmp_path / "eval.csv").read_text().splitlines()[1:]
    steps_and_means = [line.split(",")[:4:3] for line in lines]
    assert steps_and_means == [["10", "10"], ["20", "20"], ["30", "-30"]]


def test_a_log_file_gets_plain_lines_at_a_calm_pace(tmp_path: Path, monkeypatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) * 0.5)
    with logger(tmp_path) as log:
        for step in range(1, 101):
            log.progress(step, loss=1 / step)
    lines = printed(log)
    assert lines[0].startswith("step 1/100  loss 1")
    assert lines[-1].startswith("step 100/100  loss 0.01  ")
    assert 3 <= len(lines) <= 12
    assert "\x1b" not in "".join(lines)


def test_long_work_is_heard_of_in_a_log_file_now_and_then(monkeypatch) -> None:
    now = iter([0.0, 5.0, 21.0, 21.0, 30.0, 31.0, 31.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    console = Console(file=io.StringIO(), width=100)
    with progress.stages(console) as say:
        for line in ("query 1 …", "query 2 …", "query 3 …", "table done"):
            say(line)
    assert console.file.getvalue().splitlines() == ["query 2 …", "table done"]


def test_a_terminal_gets_a_bar_with_the_latest_values(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Logger(tmp_path, 100, Settings(), console) as log:
        log.progress(40, loss=0.125, score=51.5)
        log.message("[a] saved")
        log.progress(50, loss=0.25)
    out = console.file.getvalue()
    assert "[a] saved" in out
    last = out[out.rindex("50/100") :]
    assert all(part in last for part in ("━", "loss 0.25", "score 51.5"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"eval.csv: Not a directory; write elsewhere"):
        logger(tmp_path / "file" / "run")


def test_a_full_disk_in_the_writers_thread_is_not_told_twice(tmp_path: Path, monkeypatch) -> None:
    def die(error: Exception) -> None:
        def fail() -> None:
            raise error

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))
    with logger(tmp_path):
        die(OSError("full"))
        die(ValueError("a mistake"))
    assert told == [ValueError]
    die(OSError("another's"))
    assert told == [ValueError, OSError]


def test_a_disk_that_is_full_from_the_beginning_is_not_told_twice(tmp_path: Path, monkeypatch):
    """The writer's thread may end before the run has begun."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: told.append(failure.exc_type))

    def full(*arguments: object, **options: object) -> None:
        def fail() -> None:
            raise OSError("full")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        raise OSError("full")

    monkeypatch.setattr("decision_s4.agents.logger.SummaryWriter", full)
    hook = threading.excepthook
    with pytest.raises(OSError, match="full"):
        logger(tmp_path)
    assert told == []
    threading.excepthook = hook
