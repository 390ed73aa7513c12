"""evaluate.py from the outside: what it prints and writes, and what it refuses."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from decision_s4 import evaluate, train
from decision_s4.agents import checkpoint, fqe, saved
from decision_s4.agents.actor import Actor

TINY = (
    "--steps 4 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> str:
    """The folder of a run of 4 steps."""
    run_dir = str(tmp_path_factory.mktemp("runs") / "run")
    assert train.main([*TINY.split(), "--run-dir", run_dir]) == 0
    return run_dir


def test_the_table_and_the_file(run, capsys):
    assert evaluate.main([run, "--episodes", "3"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "task    Hopper-v5, target returns 3600, 1800\n" in said.out
    assert "0 = -20.27 (random), 100 = 3234.30 (expert)" in said.out
    with Path(run, "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["target_return"], row["episodes"]) for row in rows] == [
        ("3600.0", "3"),
        ("1800.0", "3"),
    ]
    for row in rows:
        mean, score = float(row["return_mean"]), float(row["normalized_score"])
        assert score == pytest.approx(100 * (mean + 20.272305) / (3234.3 + 20.272305))
        assert float(row["return_ci_low"]) <= mean <= float(row["return_ci_high"])


def test_another_reading_of_a_policy_has_a_table_of_its_own(run):
    plain = Path(run, "evaluation.csv")
    assert evaluate.main([run, "--episodes", "2"]) == 0
    before = plain.read_bytes()
    assert evaluate.main([run, "--episodes", "2", "--chunk-steps", "5"]) == 0
    assert plain.read_bytes() == before
    assert Path(run, "evaluation-chunk-steps-5.csv").is_file()


def test_other_targets_checkpoint_seed_and_file(run, tmp_path):
    def rows(*flags: str) -> str:
        output = tmp_path / "new" / "table.csv"
        choice = ["--target-returns", "100", "--checkpoint", "last", "--episodes", "2"]
        assert evaluate.main([run, *choice, "--output", str(output), *flags]) == 0
        return output.read_text()

    first = rows()
    assert first.splitlines()[1].startswith("4,100.0,2,")
    assert rows() == first
    assert rows("--seed", "5") != first
    assert rows("--threads", "0").splitlines()[1].startswith("4,100.0,2,")


def test_an_episode_within_one_chunk_is_evaluated_as_ever(run, tmp_path):
    tables = []
    for flags in ([], ["--chunk-steps", "1000"], ["--chunk-steps", "5"]):
        output = tmp_path / "table.csv"
        assert evaluate.main([run, "--episodes", "1", "--output", str(output), *flags]) == 0
        tables.append(output.read_text())
    assert tables[0] == tables[1] != tables[2]


def test_training_and_evaluation_agree(run, tmp_path):
    """The same episodes, so the same row: the saved policy is the one that was evaluated."""
    output = tmp_path / "table.csv"
    flags = ["--checkpoint", "last", "--episodes", "1", "--seed", "0", "--output", str(output)]
    assert evaluate.main([run, *flags]) == 0
    assert output.read_text().splitlines()[1:] == [
        line for line in Path(run, "eval.csv").read_text().splitlines() if line.startswith("4,")
    ]


def test_a_target_beyond_the_logged_returns_is_held_unless_refused(run, tmp_path, capsys):
    def means(*flags: str) -> list[str]:
        output = tmp_path / "table.csv"
        asked = ["--target-returns", "90000,30", "--episodes", "1", "--output", str(output)]
        assert evaluate.main([run, *asked, *flags]) == 0
        with output.open() as file:
            return [row["return_mean"] for row in csv.DictReader(file)]

    held = means()
    line = "        asked for 90000, the best logged episode returned 3690.2: asking for that\n"
    assert line in capsys.readouterr().out
    free = means("--no-hold-return")
    assert "asking for that" not in capsys.readouterr().out
    assert free[0] != held[0]


def test_progress_counts_episodes(run):
    config = evaluate.EvaluateConfig(Path(run), episodes=2)
    found = checkpoint.load(config.run)
    actor, task = Actor(evaluate.saved.rebuild(found)), evaluate.saved.task(found)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    assert len(evaluate.play(actor, task, config, console)) == 2
    assert "4 episodes" in console.file.getvalue()


def test_a_run_without_environment_is_told_one(tmp_path, run, capsys):
    blind = str(tmp_path / "blind")
    assert train.main([*TINY.split(), "--env", "none", "--run-dir", blind]) == 0
    capsys.readouterr()
    assert evaluate.main([blind]) == 2
    expected = (
        "evaluate.py: this run names no environment; give one with --env, such as Hopper-v5\n"
    )
    assert capsys.readouterr().err == expected
    assert evaluate.main([blind, "--env", "Hopper-v5", "--episodes", "1"]) == 0
    assert "D4RL scale hopper: 0 = -20.27" in capsys.readouterr().out


BAD = {
    "RUN --checkpoint worst": "checkpoint 'worst' is unknown; give last, best or a step",
    "RUN --checkpoint 99": "has no checkpoint of step 99; it has ",
    "RUN --episodes 0": "--episodes is 0; use 1 to 1000000",
    "RUN --seed -1": "--seed is -1; use 0 to 4294967295",
    "RUN --threads -1": "--threads is -1; use 0 to 1024",
    "RUN --target-returns x": "--target-returns: could not convert string to float: 'x'",
    "RUN --target-returns nan": "--target-returns has nan; use finite numbers",
    "RUN --env Hoper-v5": "environment 'Hoper-v5' is not registered; did you mean 'Hopper-v5'?",
    "RUN --env HalfCheetah-v5": "has observations Box(17,), the policy Box(11,)",
    "RUN --env none": "this run names no environment",
    "RUN 3": "unexpected '3'",
    "RUN --stepz 3": "unknown flag --stepz",
    "RUN --chunk-steps -1": "--chunk-steps is -1; use 0 to 100000000; 0 for none",
    "RUN --keep-steps 9": "--keep-steps keeps what selective layers open for, and backbone 's4'",
    "RUN --polynomial-data x": "--polynomial-data x needs --polynomial and a degree, such as 7",
    "RUN --logged hopper-mixed --env Hopper-v5": "--logged estimates without playing, and --env pl",
    "RUN --logged hopper-mixed --chunk-steps 9": "without playing, and --chunk-steps plays; leave",
    "RUN --output RUN": "cannot be written; give a file in a writable folder",
    "RUN --output RUN/config.yaml/x.csv": "cannot be written; give a file in a writable folder",
    "nowhere": "nowhere: holds no checkpoints; give a run's folder that does",
    "RUN/config.yaml": "holds no checkpoints; give a run's folder that does",
}


@pytest.mark.parametrize("argv", BAD)
def test_bad_input_is_one_line(argv, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}
    assert evaluate.main(argv.replace("RUN", run).split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("evaluate.py: ")
    assert said.err.count("\n") == 1
    assert BAD[argv] in said.err
    assert {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")} == before
    assert not list(tmp_path.iterdir())


def test_a_value_from_logged_data_needs_no_simulator(run, monkeypatch, capsys):
    monkeypatch.setattr(fqe, "logged_actions", lambda agent, data, target: np.zeros((99_999, 3)))
    monkeypatch.setattr(fqe, "_fit", lambda *given: None)
    assert evaluate.main([run, "--logged", "hopper-mixed", "--target-returns", "100"]) == 0
    assert "asked for 100: " in capsys.readouterr().out
    aimless = replace(saved.task(checkpoint.load(Path(run))), target_returns=(None,))  # as PPO's
    monkeypatch.setattr(saved, "task", lambda found: aimless)
    assert evaluate.main([run, "--logged", "hopper-mixed"]) == 0
    assert "asked for no return: " in capsys.readouterr().out
    assert evaluate.main([run, "--logged", "nothing"]) == 2
    assert "unknown dataset 'nothing'" in capsys.readouterr().err
    assert evaluate.main([run, "--logged", "hopper-mixed", "--probe", "lrp"]) == 2
    assert "--logged estimates without playing, and --probe plays" in capsys.readouterr().err


def test_as_a_polynomial(run, tmp_path, capsys):
    """Many terms play as the policy does; few are told to be off."""
    tables = []
    for flags in ([], ["--polynomial", "60"], ["--polynomial", "2"]):
        output = tmp_path / "table.csv"
        assert evaluate.main([run, "--episodes", "1", "--output", str(output), *flags]) == 0
        tables.append(next(csv.DictReader(io.StringIO(output.read_text()))))
    said = capsys.readouterr().out
    # gelu, then a layer of norm and two gelu, the last norm and tanh
    assert f"polynomial of degree {2**4 * 5**2}, multiplicative depth {4 * 1 + 2 * 3}\n" in said
    assert tables[1]["length_mean"] == tables[0]["length_mean"]
    assert float(tables[1]["return_mean"]) == pytest.approx(float(tables[0]["return_mean"]), 1e-2)
    assert tables[2]["return_mean"] != tables[0]["return_mean"]
    with Path(run, "polynomial.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["function"] for row in rows] == ["gelu", "rsqrt", "gelu", "gelu", "rsqrt", "tanh"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--polynomial 256", "--polynomial is 256; use 0 to 255"),
        ("--polynomial 3 --keep-steps 5", "--polynomial excludes --chunk-steps and --keep-steps"),
        ("--polynomial 3 --polynomial-data nowhere.hdf5", "no such file"),
    ],
)
def test_bad_input_of_polynomials(run, flags, message, capsys):
    assert evaluate.main([run, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
