"""train.py and evaluate.py from the outside: a run, an exact resume, clear refusals."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import decision_s4
from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint
from decision_s4.agents.packing import pack

TINY = [
    "--steps",
    "12",
    "--eval-every",
    "6",
    "--eval-episodes",
    "2",
    "--batch-steps",
    "300",
    "--d-model",
    "8",
    "--d-embed",
    "8",
    "--n-layers",
    "1",
    "--backbone-options",
    "d_state=4",
    "--threads",
    "1",
    "--no-video",
    "--log-every",
    "3",
]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    found, tensors = checkpoint.load(run), {}
    pack(found.trainer, tensors, "trainer")
    return tensors | found.weights


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main([*TINY, "--run-dir", str(run)]) == 0
    return run


def test_a_run_leaves_what_it_promises(whole_run):
    rows = list(csv.DictReader((whole_run / "eval.csv").open()))
    assert [(row["step"], row["target_return"]) for row in rows] == [
        ("6", "3600.0"),
        ("6", "1800.0"),
        ("12", "3600.0"),
        ("12", "1800.0"),
    ]
    assert (whole_run / "config.yaml").is_file()
    assert checkpoint.load(whole_run).step == 12


def test_evaluate_reads_a_run(whole_run, capsys):
    assert evaluate.main([str(whole_run), "--episodes", "2", "--target-returns", "100"]) == 0
    assert "D4RL" in capsys.readouterr().out or (whole_run / "evaluation.csv").is_file()


def test_killed_and_resumed_equals_uninterrupted(whole_run, tmp_path):
    """Interrupted by SIGINT wherever it happens to be, then resumed: bit for bit the same."""
    run = tmp_path / "cut"
    command = [sys.executable, "-m", "decision_s4.train", *TINY, "--run-dir", str(run)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    for _ in range(600):
        if (run / "checkpoints" / "last").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert train.main(["--resume", str(run)]) == 0
    expected, found = tensors_of(whole_run), tensors_of(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (run / "eval.csv").read_text() == (whole_run / "eval.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--stepz 3", "did you mean '--steps'"),
        ("--algo decision-s5", "did you mean 'decision-s4'"),
        ("--backbone s4dd", "did you mean 's4d'"),
        ("--backbone-options d_stat=3", "did you mean 'd_state'"),
        ("--backbone-options d_state", "no value"),
        ("--dataset hopper-mixd", "hopper-mixed"),
        ("--env Hoper-v5", "did you mean 'Hopper-v5'"),
        ("--env HalfCheetah-v5", "Box(17,)"),
        ("--steps 0", "--steps is 0"),
        ("--steps abc", "--steps"),
        ("--learning-rate -1", "--learning-rate"),
        ("--device cuda:77", "--device cuda:77"),
        ("--target-returns x", "--target-returns"),
        ("--run-dir /dev/null/run", "/dev/null/run"),
        ("--resume /dev/null", "--resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([*TINY, *flags.split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not list(tmp_path.iterdir())


def test_evaluate_refuses_what_is_no_run(tmp_path, whole_run, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert evaluate.main([str(whole_run), "--checkpoint", "worst"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_no_room_imports_train_or_another_projects_names():
    root = Path(decision_s4.__file__).parent
    for path in [
        *root.glob("envs/*.py"),
        *root.glob("agents/**/*.py"),
        *root.glob("kernels/**/*.py"),
    ]:
        text = path.read_text()
        assert "import agents" not in text
        assert "decision_s4.train" not in text
        if path.parent.name == "envs":
            assert "decision_s4.agents" not in text
