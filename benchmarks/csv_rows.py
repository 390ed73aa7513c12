"""Rows of CSV files, as text: read, and added to."""

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = dict[str, str]


def read(path: Path | None) -> list[Row]:
    """All rows, of a compressed file too; none where there is no file, or not yet."""
    if path is None or not path.exists():
        return []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows that have the fields of the file, which begins with their names."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
