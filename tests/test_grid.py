"""benchmarks/d4rl.py: what it trains, that it goes on where it stopped, and its table by hand."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

import decision_s4

FOLDER = Path(decision_s4.__file__).parent / "benchmarks"


def load(name: str):
    """A benchmark's module; the folder is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


grid_table, d4rl = load("grid_table"), load("d4rl")


def row(algorithm, seed, step, target, score, dataset="hopper-medium"):
    about = {"dataset": dataset, "algorithm": algorithm, "seed": seed, "finished": 1, "seconds": 9}
    score = {"normalized_score": str(score), "return_mean": str(32 * score)}
    return about | {"step": str(step), "target_return": str(target)} | score


ROWS = [
    *(row("ours", 0, step, 3600, score) for step, score in ((1, 70), (2, 50))),
    row("ours", 0, 2, 1800, 60),
    row("ours", 1, 2, 3600, 70),
    row("theirs", 0, 2, 3600, 40),
    row("theirs", 1, 2, 3600, 50),
]


def test_last_is_the_first_target_of_the_last_step_and_best_the_best_of_all():
    first = grid_table.runs_of(ROWS)[0]
    assert (first["last"], first["last_target"], first["last_step"]) == (50, "3600", "2")
    assert (first["best"], first["best_target"], first["best_step"]) == (70, "3600", "1")


def test_the_table_by_hand(tmp_path):
    grid_table.write_all(ROWS, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| hopper-medium | 60.0 ± 10.0 (2) | 45.0 ± 5.0 (2) |" in text
    assert "| **mean** | **60.0** [50.0, 70.0] | **45.0** [40.0, 50.0] |" in text
    assert "| theirs | 0.88 [" in text  # of four pairs three are won, one is a tie
    assert (tmp_path / "scores.png").stat().st_size > 1000
    assert (tmp_path / "profiles.png").stat().st_size > 1000
    with (tmp_path / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    with (tmp_path / "evaluations.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(ROWS)


def test_an_algorithm_that_lacks_a_run_gets_no_mean(tmp_path):
    grid_table.write_all([*ROWS, row("ours", 0, 2, 5000, 10, "walker2d-medium")], tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| walker2d-medium | 10.0 ± 0.0 (1) | – |" in text
    assert "| **mean** | – | – |" in text


@pytest.mark.parametrize(
    ("dataset", "source", "name"),
    [
        ("hopper-medium", "minari", "gym/hopper/medium-v0"),
        ("hopper-medium-replay", "minari", "gym/hopper/medium-replay-v0"),
        ("hopper-medium-expert", "minari", "gym/hopper/medium-v0,gym/hopper/expert-v0"),
        ("hopper-medium-expert", "d4rl", "hopper-medium-expert-v2"),
    ],
)
def test_names_of_datasets(dataset, source, name):
    assert d4rl.names_of(dataset, source, "gym") == name


TINY = (
    "--datasets hopper-medium --seeds 0 --processes 1 --runs runs --output out --flags "
    "'--dataset hopper-mixed --steps 4 --eval-every 2 --eval-episodes 1 --d-model 8 --n-layers 1 "
    "--device cpu'"
)


def run(monkeypatch, *more: str) -> None:
    import shlex

    monkeypatch.setattr(sys, "argv", ["d4rl.py", *shlex.split(TINY), *more])
    d4rl.main()


def test_a_grid_trains_what_is_missing_and_goes_on_with_what_was_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = "small=decision-s4 --d-embed 8"
    run(monkeypatch, "--algorithms", spec, "--minutes", "0")
    assert "no run has been evaluated" in capsys.readouterr().out
    run(monkeypatch, "--algorithms", spec, "--minutes", "0.02")  # cut while it starts
    assert "cut" in (said := capsys.readouterr().out) or "s)" in said
    run(monkeypatch, "--algorithms", spec)
    assert (said + capsys.readouterr().out).count("small/0: done") == 1  # it may end as it is cut
    run(monkeypatch, "--algorithms", spec)
    assert "small/0: done" not in (said := capsys.readouterr().out)
    assert "| hopper-medium |" in said


def test_trainings_in_turns_are_those_of_train(tmp_path, monkeypatch, capsys):
    """The same weights, evaluated from the same seed."""
    monkeypatch.chdir(tmp_path)
    specs = ("--algorithms", "small=decision-s4 --d-embed 8", "other=decision-s4 --backbone lru")
    monkeypatch.syspath_prepend(FOLDER)
    run(monkeypatch, *specs, "--launcher", "together", "--minutes", "0")
    assert capsys.readouterr().out.count(": cut") == 2
    run(monkeypatch, *specs, "--launcher", "together")
    assert capsys.readouterr().out.count(": done") == 2
    run(monkeypatch, *specs, "--runs", "alone")
    last = [
        list(csv.DictReader((tmp_path / runs / "hopper-medium/other/0/eval.csv").open()))[-2:]
        for runs in ("runs", "alone")
    ]
    assert {row["step"] for rows in last for row in rows} == {"4"}
    together, alone = ([float(row["return_mean"]) for row in rows] for rows in last)
    assert together == pytest.approx(alone, rel=1e-3)
