"""benchmarks/backbone_table.py: a line a backbone, what was not measured is empty."""

import pytest

MICRO = {"name": "gla", "task": "recall", "right": "0.5", "right_longer": "0.25", "seed": "0"}


@pytest.fixture(scope="module")
def program(program_of):
    return program_of("benchmarks/backbone_table.py")


def test_what_was_measured_stands_in_its_column(program):
    memory = [
        {"task": "TMaze-v0", "learner": "gla", "seed": str(seed), "return_mean": mean}
        for seed, mean in enumerate(("0.5", "1.0"))
    ]
    micro = [MICRO, MICRO | {"task": "sum", "right": "1"}, MICRO | {"name": "gla,beta=2"}]
    found = {"s4": {3600.0: [1000.0, 2000.0]}, "gla": {3600.0: [1200.0]}}
    speeds = dict.fromkeys(
        [
            "parameters",
            "state_bytes",
            "steps_per_second",
            "resets_percent",
            "step_p50_us",
            "step_p99_us",
            "block_over_gru_cell",
        ],
        "7",
    )
    head, _, first, second = program.table(found, {"s4": speeds}, {}, memory, micro).splitlines()
    names = [cell.strip() for cell in head.split("|")[1:-1]]
    lines = [
        dict(zip(names, map(str.strip, line.split("|")[1:-1]), strict=True))
        for line in (first, second)
    ]
    assert [line["backbone"] for line in lines] == ["s4", "gla"]  # the best first
    assert lines[0]["asked for 3600"].startswith("**1500**")
    assert lines[0]["parameters"] == "7" and lines[1]["parameters"] == ""
    assert lines[1]["TMaze-v0"] == "0.75 (0.50 … 1.00)" and lines[0]["TMaze-v0"] == ""
    assert lines[1]["recall"] == "50 / 25"
    assert lines[1]["sum"] == "100 / 25"
    assert lines[0]["recall"] == lines[1]["parity"] == ""
