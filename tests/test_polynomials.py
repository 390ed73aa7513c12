"""benchmarks/polynomials.py: a run becomes rows, rows a table."""

import sys

import pytest


@pytest.fixture
def program(program_of, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return program_of("benchmarks/polynomials.py")


def test_a_run_is_played_as_itself_and_as_polynomials(program, monkeypatch, tmp_path, capsys):
    tiny = "--d-model 8 --n-layers 1 --d-embed 8 --backbone-options d_state=4 --batch-steps 50"
    monkeypatch.setattr(program, "FLAGS", f"{program.FLAGS} {tiny}")
    path = tmp_path / "rows.csv"
    words = ["--steps", "2", "--episodes", "1", "--degrees", "31", "--results", str(path)]
    given = ["polynomials.py", "--backbones", "s4d", "--seeds", "0", "--processes", "0", *words]
    monkeypatch.setattr(sys, "argv", given)
    program.main()  # nothing there: an empty table
    arguments = program.arguments()
    program.csv_rows.append(path, program.run("s4d", 1.0, 0, arguments))
    program.main()
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "s4d" in line]
    assert [line[2].strip() for line in lines] == ["itself", "31"]
    assert lines[0][5:] == lines[1][5:]  # so close that it falls as soon
    most, median = map(float, lines[1][4].split(","))
    assert 0 < median <= most < 0.01


def test_the_table_says_each_seeds_return_and_where_there_was_none(program):
    row = {"backbone": "s4d", "range_weight": "0", "updates": "9", "target_return": "3600.0"}
    seeds = [("0", "2e3", "0.4", ""), ("1", "2e3", "0.2", "71.4"), ("2", "2e3", "9", "70")]
    rows = [
        row
        | {"seed": seed, "degree": "7", "whole": whole, "depth": "44", "most": most}
        | {"median": "0.1", "return_mean": mean}
        for seed, whole, most, mean in seeds
    ]
    *_, line = program.table(rows)
    assert line == "| s4d, 0 | 7 | 2.0e+03, 44 | 0.4, 0.1 | no number, 71, 70 |"
