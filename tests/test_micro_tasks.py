"""benchmarks/micro_tasks.py: the answers of its tasks, what it learns, that it goes on."""

import sys
from concurrent.futures import Future
from functools import partial
from typing import ClassVar

import pytest
import torch

from decision_s4.kernels import cuda_graph


@pytest.fixture(scope="module")
def program(program_of):
    return program_of("benchmarks/micro_tasks.py")


def drawn(program, name: str, steps: int = 48):
    torch.manual_seed(0)
    task = program.TASKS[name]
    x, y = task.draw(5, steps)
    asked = y != program.NONE
    assert x.shape == y.shape == (5, steps)
    assert 0 <= x.min() <= x.max() < task.symbols
    assert 0 <= y[asked].min() <= y[asked].max() < task.answers
    return [(row.tolist(), answers.tolist()) for row, answers in zip(x, y, strict=True)]


@pytest.mark.parametrize("steps", [48, 192])
def test_a_key_recalls_its_value(program, steps):
    for x, y in drawn(program, "recall", steps):
        pairs = dict(zip(x[0:24:2], x[1:24:2], strict=True))
        assert [pairs[key] - 32 for key in x[-12:]] == y[-12:]
        assert set(y[:-12]) == {program.NONE}


@pytest.mark.parametrize("steps", [48, 192])
def test_the_mark_is_always_followed_by_the_same(program, steps):
    for x, y in drawn(program, "induction", steps):
        marks = [t for t, symbol in enumerate(x) if symbol == 16]
        asked = [t for t, answer in enumerate(y) if answer != program.NONE]
        assert marks[1:] == asked
        assert len(asked) == 4
        assert {x[t + 1] for t in marks} == {y[t] for t in asked} == {x[marks[0] + 1]}


def test_sums(program):
    for name, modulus in (("parity", 2), ("sum", 5)):
        for x, y in drawn(program, name):
            assert [sum(x[: t + 1]) % modulus for t in range(len(x))] == y


def test_digits_of_a_sum_of_two_numbers(program):
    for x, y in drawn(program, "carry"):
        first, second = ("".join(str(digit) for digit in reversed(number)) for number in digits(x))
        written = str(int(first) + int(second)).zfill(len(x))
        assert written[-len(x) :] == "".join(map(str, reversed(y)))


def digits(x: list[int]) -> tuple[list[int], list[int]]:
    return [symbol // 10 for symbol in x], [symbol % 10 for symbol in x]


def test_a_gru_learns_parity_for_any_length_and_a_perceptron_cannot(program, monkeypatch):
    monkeypatch.setattr(program, "STEPS", 16)
    task = ("parity", 0)
    gru, mlp = (program.run(*run, "cpu") for run in (("gru", *task, 400), ("mlp", *task, 50)))
    assert float(gru["right_longer"]) > 0.99
    assert int(gru["updates"]) < 400  # it stops when it can
    assert float(mlp["right"]) < 0.6


@pytest.mark.parametrize("name", ["s4d", "rwkv"])
@pytest.mark.parametrize("recordable", [True, False])
def test_recorded_updates_are_those_of_adam_on_one_cycle(program, name, recordable, monkeypatch):
    monkeypatch.setattr(program, "STEPS", 12)
    monkeypatch.setattr(program, "ROUND", 4)
    if recordable:  # a recording that runs operation by operation, as there is no CUDA here
        monkeypatch.setattr(cuda_graph, "record", lambda run, device: (run, None))
    found = []
    for train in (program.train, lambda *given: program.finished(program.train_recorded(*given))):
        torch.manual_seed(0)
        reader = program.Reader(name, program.TASKS["parity"])
        reader.embed.weight.requires_grad_(False)
        assert train(reader, program.TASKS["parity"], 20) == 20
        found.append(dict(reader.named_parameters()))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def paused(program, name, task, seed):
    """A run as on CUDA: with a pause after each update."""
    random = program.OwnRandom(seed)
    kind = program.TASKS[task]._replace(draw=partial(random, program.TASKS[task].draw))
    reader = random(program.Reader, name, kind)
    yield from program.train_recorded(reader, kind, 20)
    return name, task, seed, reader.read_out.weight.tolist()


def test_runs_in_turns_are_the_runs_alone(program, monkeypatch):
    monkeypatch.setattr(program, "STEPS", 12)
    monkeypatch.setattr(program, "ROUND", 4)
    wanted = [("mlp", "parity", 0), ("gru", "sum", 0), ("mlp", "sum", 1), ("gru", "parity", 1)]
    alone, in_turns = (
        sorted(program.interleaved((paused(program, *each) for each in wanted), together, False))
        for together in (1, 3)
    )
    assert alone == in_turns
    assert len(alone) == 4


def test_it_goes_on_and_prints_medians(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "STEPS", 8)
    monkeypatch.setattr(program, "ProcessPoolExecutor", InPlace)
    path = tmp_path / "results/all.csv"
    for seeds in ("0", "0 1 2"):
        flags = f"--names mlp --tasks parity --updates 1 --seeds {seeds} --results {path}"
        monkeypatch.setattr(sys, "argv", ["micro_tasks.py", *flags.split()])
        program.main()
    rows = program.csv_rows.read(path)
    assert sorted(row["seed"] for row in rows) == ["0", "1", "2"]
    assert [row["seed"] for row in InPlace.made] == ["0", "1", "2"]  # none twice
    flags = f"--names mlp --tasks parity --processes 0 --results {tmp_path}/none.csv {path}"
    monkeypatch.setattr(sys, "argv", ["micro_tasks.py", *flags.split()])
    capsys.readouterr()
    program.main()
    assert capsys.readouterr().out.strip().endswith("| 3 |")
    assert len(InPlace.made) == 3
    rows = [dict(rows[0], right=r, right_longer=s) for r, s in ((1, 0.1), (0.5, 0.2), (0, 0.9))]
    assert list(program.table(rows, ["mlp", "gru"], ["parity", "sum"]))[2:] == [
        "| mlp | 50 / 20 |  | 0 to 1 |"
    ]


class InPlace:
    """An executor that runs at once."""

    made: ClassVar[list[dict[str, str]]] = []

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, run, *arguments):
        done = Future()
        done.set_result(run(*arguments))
        self.made.append(done.result())
        return done


def test_no_run_begins_too_late(program):
    assert program.in_time(0.0, "mlp", "parity", 0, 1, "cpu") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mambo", "did you mean 'mamba'"),
        ("deltanet,beta_max=3", "beta_max 3"),
        ("gru,layers=2", "has no option 'layers'"),
    ],
)
def test_bad_names_are_named(program, name, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["micro_tasks.py", "--names", name])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert message in capsys.readouterr().err
