"""Evaluation rows: kept in eval.csv, shown as a table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from decision_s4.agents.run_dir import replace_text
from decision_s4.envs.errors import UserError

Row = dict[str, float | None]
COLUMNS = (
    "step",
    "target_return",
    "episodes",
    "return_mean",
    "return_std",
    "return_iqm",
    "return_ci_low",
    "return_ci_high",
    "normalized_score",
    "length_mean",
)
HEADINGS = ("step", "target", "episodes", "return", "95% interval", "IQM", "score", "length")
WIDEST = 200


def read_rows(path: Path, last_step: int) -> list[Row]:
    """Rows of eval.csv up to `last_step`; none without a file. UserError for a foreign file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: its columns are not {','.join(COLUMNS)}; move it away")
        try:
            rows = [{name: _number(row[name]) for name in COLUMNS} for row in reader]
            return [row for row in rows if _step(row) <= last_step]
        except (ValueError, TypeError, AttributeError):
            where = f"{path}: line {reader.line_num}"
            raise UserError(f"{where} is no row of numbers; mend it") from None


def _step(row: Row) -> float:
    if row["step"] is None:
        raise ValueError("a row of no step")
    return row["step"]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace eval.csv by `rows`, whole or not at all; None is an empty cell. Raises UserError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def checked_row(step: int, row: Mapping[str, Any]) -> Row:
    """`row` with `step`, in the order of COLUMNS; KeyError for a column missing or unknown."""
    full = dict(row) | {"step": step}
    if full.keys() != set(COLUMNS):
        raise KeyError(f"evaluation row: {sorted(full.keys() ^ set(COLUMNS))} missing or unknown")
    return {name: None if full[name] is None else _number(str(full[name])) for name in COLUMNS}


def _number(text: str) -> float | None:
    if text == "":
        return None
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """Print the table of `rows`, whole: 80 columns hold most, a terminal wraps the others."""
    width, console.width = console.width, WIDEST
    console.print(table(rows, console.is_terminal))
    console.width = width


def table(rows: Sequence[Row], boxed: bool) -> Table:
    """A table of evaluations, with a mark at what `best` links to; without lines for a log."""
    padding = (0, 0, 0, 1 if boxed else 2)
    result = Table(box=SIMPLE if boxed else None, pad_edge=False, padding=padding)
    for name in HEADINGS:
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("")
    best = _best(rows)
    for row in rows:
        result.add_row(*_cells(row), "best" if row is best else "")
    return result


def _best(rows: Sequence[Row]) -> Row | None:
    """Which row made its step's checkpoint `best`: of several steps' first targets, the highest."""
    firsts: dict[float | None, Row] = {}
    for row in rows:
        firsts.setdefault(row["step"], row)
    if len(firsts) < 2:
        return None
    return max(firsts.values(), key=lambda row: _or_lowest(row["return_mean"]))


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value


def _cells(row: Row) -> list[str]:
    return [
        shown(row["step"]),
        shown(row["target_return"]),
        shown(row["episodes"]),
        f"{brief(row['return_mean'])} ± {brief(row['return_std'])}",
        f"{brief(row['return_ci_low'])} … {brief(row['return_ci_high'])}",
        *(brief(row[name]) for name in ("return_iqm", "normalized_score", "length_mean")),
    ]


def brief(value: float | None) -> str:
    """A number for a table: three digits that count, or all before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(value: float | None) -> str:
    """A number for a reader: whole ones as they are, others with one digit, or four that count."""
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"
