"""benchmarks/ds4_online_table.py: gains over seeds, and what leaving a part out changes."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def tables(program_of):
    return program_of("benchmarks/ds4_online_table.py")


def write(runs: Path, ablation: str, seed: int, returns: list[float]) -> None:
    folder = runs / "hopper" / ablation / str(seed)
    folder.mkdir(parents=True)
    points = [f"{10_000 * (i + 1)},20,{value}" for i, value in enumerate(returns)]
    (folder / "eval.csv").write_text("\n".join(["step,episodes,return_mean", *points]) + "\n")


@pytest.fixture
def rows(tables, tmp_path):
    write(tmp_path, "all-parts", 0, [100, 100, 110, 120, 130, 999])
    write(tmp_path, "all-parts", 1, [200, 180, 220, 230, 240])
    write(tmp_path, "no-anchor", 0, [100, 50, 90, 100])
    write(tmp_path, "no-anchor", 1, [200, 150, 210, 220])
    write(tmp_path, "no-anchor", 2, [300])  # of a seed that all parts lack
    return tables.gather(tmp_path)


def test_gains_by_hand(tables, rows):
    names = {"all-parts": "all parts", "no-anchor": "no anchor", "unrun": "unrun"}
    first, second = [x for x in tables.table(rows, names).split("\n") if "k |" in x]
    # Up to 50k: 120 - 100 and 230 - 200. The lowest is 180 of 200.
    assert first == "| all parts | 2 | 50k | 150 | 175 | +20, +30 |  | 90% |"
    # Up to 40k: 80 - 100 and 193.3 - 200 against 110 - 100 and 210 - 200: -13.3 less 10, and
    # the deviation pooled over two degrees 6.67, so 4.30 x 6.67 x sqrt(1 / 2 + 1 / 2) = 29.
    assert second == "| no anchor | 2 | 40k | 150 | 137 | -20, -7 | -23 ± 29 | 50% |"


def test_an_interval_by_hand(tables):
    # Of 1, 2, 3: deviation 1, and 4.30 / sqrt 3 = 2.48.
    assert tables.interval(np.array([1.0, 2.0, 3.0])) == "+2 ± 2"
    assert tables.interval(np.array([1.0, 2.0, 3.0]) * 100) == "+200 ± 248"


def test_a_line_of_one_seed_claims_no_interval(tables, rows):
    names = {"all-parts": "all parts", "no-anchor": "no anchor"}
    kept = [row for row in rows if row["seed"] == "0"]
    assert "| no anchor | 1 | 40k | 100 | 80 | -20 | -30 | 50% |" in tables.table(kept, names)
