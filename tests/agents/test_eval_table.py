"""eval.csv keeps evaluations exactly; the table reads well in a log."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from decision_s4.agents.eval_table import (
    COLUMNS,
    checked_row,
    print_table,
    read_rows,
    shown,
    table,
    write_rows,
)
from decision_s4.envs.errors import UserError

FIXED = {"episodes": 5, "return_std": 1 / 3, "return_iqm": 2.0, "return_ci_low": 1.0}
FIXED |= {"return_ci_high": 3.0, "length_mean": 10.5}


def row(step: int, mean: float, target: float | None = 3600.0, score: float | None = 51.25):
    named = {"target_return": target, "return_mean": mean, "normalized_score": score}
    return checked_row(step, FIXED | named)


def test_the_file_by_hand(tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.csv", [row(10, 2.0), row(10, 0.1, target=None, score=None)])
    assert (tmp_path / "eval.csv").read_text() == (
        "step,target_return,episodes,return_mean,return_std,return_iqm,return_ci_low,"
        "return_ci_high,normalized_score,length_mean\n"
        "10,3600.0,5,2.0,0.3333333333333333,2.0,1.0,3.0,51.25,10.5\n"
        "10,,5,0.1,0.3333333333333333,2.0,1.0,3.0,,10.5\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["eval.csv"]


def test_rows_come_back_up_to_a_step(tmp_path: Path) -> None:
    rows = [row(10, float("inf")), row(20, -1e-300, None, None), row(30, 1.0)]
    write_rows(tmp_path / "eval.csv", rows)
    assert read_rows(tmp_path / "eval.csv", last_step=20) == rows[:2]
    assert read_rows(tmp_path / "none.csv", last_step=20) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "its columns are not step,target_return,"),
        ("", "its columns are not step,target_return,"),
        (",".join(COLUMNS) + "\n1,2\n", "line 2 is no row of numbers; mend it"),
        (",".join(COLUMNS) + "\n1,2,x,4,5,6,7,8,9,10\n", "line 2 is no row of numbers; mend it"),
        (",".join(COLUMNS) + "\n,2,3,4,5,6,7,8,9,10\n", "line 2 is no row of numbers; mend it"),
    ],
)
def test_a_foreign_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "eval.csv").write_text(text)
    with pytest.raises(UserError, match=f"eval.csv: {message}"):
        read_rows(tmp_path / "eval.csv", last_step=0)


def test_a_wrong_column_is_named() -> None:
    with pytest.raises(KeyError, match="'mean', 'normalized_score'"):
        checked_row(1, FIXED | {"target_return": 1.0, "return_mean": 1.0, "mean": 1.0})


def test_the_table_in_a_log_has_no_lines_and_marks_the_best() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(table([row(10, 1000.0), row(20, 1234.5678, None)], False))
    assert out.getvalue().splitlines() == [
        "step  target  episodes        return  95% interval  IQM  score  length      ",
        "  10    3600         5  1000 ± 0.333         1 … 3    2   51.2    10.5      ",
        "  20       -         5  1235 ± 0.333         1 … 3    2   51.2    10.5  best",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_number_is_cut(terminal: bool) -> None:
    numbers = {"return_mean": -123456789.0, "return_ci_low": -0.000123456, "length_mean": 27999.5}
    out, rows = io.StringIO(), [row(10**9, 1.0) | numbers, row(4000, 3600.0)]
    console = Console(file=out, width=40, force_terminal=terminal, color_system=None)
    print_table(console, rows)
    text = out.getvalue()
    assert "-123456789 ± 0.333" in text
    assert "-0.000123 … 3" in text
    assert "1000000000" in text and "28000" in text
    assert len([line for line in text.splitlines() if "3600" in line]) == 2


def test_an_ordinary_table_fits_a_terminal() -> None:
    means = {"return_mean": 3286.1, "return_std": 1052.2, "return_iqm": 3300.5}
    ends = {"return_ci_low": 2932.3, "return_ci_high": 3486.5, "length_mean": 965.4}
    out = io.StringIO()
    rows = [row(10000, 3600.0) | means | ends | {"episodes": 100}]
    print_table(Console(file=out, width=80, force_terminal=True, color_system=None), rows)
    assert max(map(len, out.getvalue().splitlines())) <= 80


def marked(rows: list[dict]) -> list[bool]:
    out = io.StringIO()
    Console(file=out, width=80).print(table(rows, boxed=False))
    return ["best" in line for line in out.getvalue().splitlines()[1:]]


def test_the_best_is_judged_by_the_first_target_as_checkpoints_are() -> None:
    rows = [row(10, 5.0), row(10, 90.0, 1800.0), row(20, 7.0), row(20, 80.0, 1800.0)]
    assert marked(rows) == [False, False, True, False]


def test_a_single_evaluation_is_no_best() -> None:
    assert marked([row(10, 5.0), row(10, 90.0, 1800.0)]) == [False, False]


def test_an_evaluation_without_a_number_is_no_best() -> None:
    assert marked([row(10, float("nan")), row(20, -5.0)]) == [False, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (3600.0, "3600"),
        (0.00123456, "0.001235"),
        (1234.5678, "1234.6"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_for_a_reader(value: float | None, text: str) -> None:
    assert shown(value) == text
