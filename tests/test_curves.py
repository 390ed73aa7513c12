"""docs/curves.py: pictures of learning curves from TensorBoard logs."""

from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter


@pytest.fixture(scope="module")
def curves(program_of):
    return program_of("docs/curves.py")


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, points in zip(folders, [{0: 0, 10: 10, 20: 20}, {5: 1, 15: 3}], strict=True):
        with SummaryWriter(str(folder)) as writer:
            for step, value in points.items():
                writer.add_scalar("eval/return_mean", value, step)
    return folders


def test_runs_are_compared_at_the_steps_that_all_reach(curves, runs):
    read = [curves.read(run, "eval/return_mean") for run in runs]
    steps, values = curves.over_runs(read)
    assert steps.tolist() == [5, 10, 15]
    assert np.allclose(values, [[5, 10, 15], [1, 2, 3]])


def test_a_command_draws_them(curves, runs, tmp_path):
    picture = tmp_path / "picture.png"
    curves.main([str(picture), f"both={runs[0]},{runs[1]}", f"one={runs[0]}", "--line", "5"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_curve_is_named_with_those_there_are(curves, runs):
    with pytest.raises(SystemExit, match=r"no curve 'loss'; it has eval/return_mean"):
        curves.read(runs[0], "loss")


def test_a_run_may_be_a_csv_file(curves, tmp_path):
    (tmp_path / "eval.csv").write_text("step,return_mean\n10,1.5\n20,2\n")
    assert curves.read(tmp_path / "eval.csv", "eval/return_mean").tolist() == [[10, 20], [1.5, 2]]
    with pytest.raises(SystemExit, match="no column 'loss', or no line"):
        curves.read(tmp_path / "eval.csv", "eval/loss")


def test_a_group_without_a_name_is_refused(curves, capsys):
    with pytest.raises(SystemExit):
        curves.main(["picture.png", "runs/a"])
    assert "'runs/a' is not name=RUN" in capsys.readouterr().err
