"""An interrupted run, resumed, equals the uninterrupted one bit for bit."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from decision_s4 import train as program
from decision_s4.agents.rng import rng_state
from decision_s4.agents.settings import settings
from decision_s4.agents.training import Training
from decision_s4.envs import datasets
from decision_s4.envs.task import Task

# Dropout draws from torch's generator, so its state matters.
TINY = (
    "--d-model 8 --d-embed 8 --n-layers 1 --backbone-options d_state=4 --batch-steps 50 "
    "--threads 1 --device cpu --no-video --dropout 0.1 --eval-episodes 1 "
)
SHORT = f"{TINY} --steps 12 --eval-every 4".split()
LONG = f"{TINY} --steps 300 --eval-every 40".split()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def contents(run_dir: Path) -> dict[str, bytes]:
    """All that a run leaves but its events: weights, optimiser, generators, order, evaluations."""
    found = [path for path in run_dir.rglob("*") if path.is_file() and "tfevents" not in path.name]
    links = {name: (run_dir / "checkpoints" / name).readlink() for name in ("best", "last")}
    files = {str(path.relative_to(run_dir)): path.read_bytes() for path in found}
    return files | {name: os.fsencode(target) for name, target in links.items()}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, cache) -> dict[str, bytes]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert program.main([*SHORT, "--run-dir", str(run_dir)]) == 0
    return contents(run_dir)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C during that update."""
    update = Training.update

    def interrupted(run: Training):
        if run.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return update(run)

    monkeypatch.setattr(Training, "update", interrupted)


@pytest.mark.parametrize("step", [1, 4, 7, 8, 11])
def test_ctrl_c_and_resume_equals_no_ctrl_c(step, whole_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        assert program.main([*SHORT, "--run-dir", str(tmp_path / "run")]) == 130
    said = capsys.readouterr()
    assert f"stopped at step {step}; go on with --resume {tmp_path / 'run'}" in said.out
    assert said.err == ""
    torch.manual_seed(99)  # another process would not have these generators' states
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert program.main(["--resume", str(tmp_path / "run")]) == 0
    assert f"resumed at step {step}" in capsys.readouterr().out
    assert contents(tmp_path / "run") == whole_run


def test_ctrl_c_in_the_last_update_loses_nothing(whole_run, tmp_path, monkeypatch, capsys):
    interrupt_at(12, monkeypatch)
    assert program.main([*SHORT, "--run-dir", str(tmp_path / "run")]) == 130
    assert "stopped" not in capsys.readouterr().out
    assert contents(tmp_path / "run") == whole_run


def test_without_evaluation_the_newest_checkpoint_is_best(tmp_path, monkeypatch):
    def run(name: str, *flags: str) -> int:
        return program.main([*SHORT, "--env", "none", "--run-dir", str(tmp_path / name), *flags])

    assert run("whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(6, patch)
        assert run("part") == 130
    assert program.main(["--resume", str(tmp_path / "part")]) == 0
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert (tmp_path / "part/checkpoints/best").readlink() == Path("12")


def start(*argv: str, **options) -> subprocess.Popen:
    command = [sys.executable, program.__file__, *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def wait_for(process: subprocess.Popen, word: str) -> list[str]:
    """The lines up to the first that begins with `word`, or all."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(word):
            break
    return lines


@pytest.fixture(scope="module")
def whole_long_run(tmp_path_factory, cache) -> dict[str, bytes]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert program.main([*LONG, "--run-dir", str(run_dir)]) == 0
    return contents(run_dir)


def test_sigint_to_a_process(whole_long_run, tmp_path):
    process = start(*LONG, "--run-dir", str(tmp_path / "run"))
    wait_for(process, "step ")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert program.main(["--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == whole_long_run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_a_run_with_workers(number, tmp_path):
    """As a terminal's Ctrl-C and a cluster's scheduler send them."""
    flags = "--algo ppo --env Pendulum-v1 --workers 2 --rows 4 --rollout-steps 16 --steps 900000"
    small = "--d-model 8 --n-layers 1 --no-video --eval-every 900000 --device cpu"
    own = ["--run-dir", str(tmp_path / "run")]
    process = start(*flags.split(), *small.split(), *own, start_new_session=True)
    wait_for(process, "step ")
    os.killpg(process.pid, number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "go on with --resume" in rest
    assert (tmp_path / "run/checkpoints/last").is_symlink()


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_ctrl_c_while_libraries_load_is_no_traceback(name, tmp_path):
    """A signal that comes with the first import, of a module that stands in torch's place."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    command = [sys.executable, str(Path(program.__file__).with_name(name))]
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also in a job
    ended = subprocess.run(
        command, env=path, capture_output=True, text=True, check=False, preexec_fn=heeded
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_sigkill_at_random_moments(whole_long_run, tmp_path):
    moments = random.Random(0)
    flags = [*LONG, "--run-dir", str(tmp_path / "run")]
    for _ in range(3):
        process = start(*flags)
        wait_for(process, "watch")
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        process.communicate()
        flags = ["--resume", str(tmp_path / "run")]
    assert program.main(flags) == 0
    assert contents(tmp_path / "run") == whole_long_run


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole_run, tmp_path):
    run_dir = tmp_path / "run"
    assert program.main([*SHORT, "--run-dir", str(run_dir)]) == 0
    for path in sorted(run_dir.rglob("*"), reverse=True):
        if path.name != "config.yaml":
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert program.main(["--resume", str(run_dir)]) == 0
    assert contents(run_dir) == whole_run


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_again(whole_run, tmp_path):
    run_dir = tmp_path / "run"
    assert program.main([*SHORT, "--run-dir", str(run_dir)]) == 0
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "eval.csv").unlink()
    half = run_dir / "checkpoints/.tmp-4-1"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(b"half")
    assert program.main(["--resume", str(run_dir)]) == 0
    assert contents(run_dir) == whole_run


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    run_dir = tmp_path / "run"
    program.main([*SHORT, "--run-dir", str(run_dir)])
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    capsys.readouterr()
    assert program.main(["--resume", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert said == f"{run_dir} is finished: step 12 of 12; train on with more --steps\n"
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_changed_flags_are_named_and_saved(tmp_path, capsys):
    run_dir = tmp_path / "run"
    program.main([*SHORT, "--run-dir", str(run_dir)])
    capsys.readouterr()
    flags = ["--steps", "16", "--learning-rate", "0.01"]
    assert program.main(["--resume", str(run_dir), *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("changed")] == [
        "changed steps: 12 -> 16",
        "changed learning_rate: 0.002 -> 0.01",
    ]
    text = (run_dir / "config.yaml").read_text()
    assert "steps: 16\n" in text
    assert "learning_rate: 0.01\n" in text
    assert (run_dir / "checkpoints/last").readlink() == Path("16")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--d-model 9", "--resume: d_model is 8, not 9, in "),
        ("--seed 1", "--resume: seed is 0, not 1, in "),
        ("--run-dir other", "--run-dir other with --resume: give only one of the two"),
    ],
)
def test_what_a_run_cannot_change(flags, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    program.main([*SHORT, "--run-dir", str(run_dir)])
    before = contents(run_dir)
    capsys.readouterr()
    assert program.main(["--resume", str(run_dir), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: {message}")
    assert error.count("\n") == 1
    assert contents(run_dir) == before


def test_pictures_draw_on_nothing_of_the_run(tmp_path):
    program.main([*SHORT, "--run-dir", str(tmp_path / "run")])
    config = settings(["--resume", str(tmp_path / "run"), "--steps", "20"])
    data = datasets.load(config.dataset)
    run = Training(config, data, Task(None, (1.0,)), torch.device("cpu"))
    run.restore(tmp_path / "run")
    order, generators = run.batches.state_dict(), str(rng_state())
    figures = []

    class Board:
        def figure(self, *arguments) -> None:
            figures.append(arguments)

    run.draw(Board(), tmp_path / "run")
    assert len(figures) == 1
    assert run.batches.state_dict() == order
    assert str(rng_state()) == generators


def test_a_run_killed_while_it_filmed_says_how_to_film_it(tmp_path, capsys):
    run_dir = tmp_path / "run"
    program.main([*SHORT, "--video", "--run-dir", str(run_dir)])
    kept, *lost = sorted((run_dir / "videos").glob("*.mp4"))
    assert kept and not list((run_dir / "videos").glob(".tmp*"))
    for path in lost:
        path.unlink()
    capsys.readouterr()
    assert program.main(["--resume", str(run_dir)]) == 0
    film = f"more --steps, or film it: evaluate.py {run_dir} --checkpoint last --video\n"
    assert capsys.readouterr().out.endswith(film)
