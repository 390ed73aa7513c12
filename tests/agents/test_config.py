"""Flags and YAML take one path: precedence, one-line errors, an exact round trip."""

import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decision_s4.agents.config import describe_changes, load_config, parse, save_config
from decision_s4.agents.form import texts_of
from decision_s4.envs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Small:
    """Train a small thing."""

    algo: str = "tortoise"
    """Which learner."""
    steps: int = 100
    """Optimiser steps."""
    eval_every: int = 10
    lr: float = 1e-3
    video: bool = True
    target_returns: tuple[float, ...] = (1.0, 2.0)
    limit: int | None = None
    name: str | None = None
    folder: Path = Path("runs")
    mode: Literal["slow", "fast"] = "slow"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps: {self.steps} is too few; give 1 or more")


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tortoise.yaml").write_text("steps: 7\nlr: 1e-4\n")
    (folder / "hare.yaml").write_text("mode: fast\ntarget_returns: [3600, 1800]\n")
    return folder


def test_every_field_is_a_flag(configs: Path) -> None:
    argv = "--algo hare --steps 3 --eval-every 4 --lr -1e-2 --no-video --target-returns -200,-1.5"
    argv += " --limit 5 --name=--odd --folder a/b --mode slow"
    assert parse(Small, argv.split(), configs=configs) == Small(
        "hare", 3, 4, -0.01, False, (-200.0, -1.5), 5, "--odd", Path("a/b"), "slow"
    )


def test_none_is_the_empty_list(configs: Path, capsys: pytest.CaptureFixture) -> None:
    for word in ("none", ""):
        assert parse(Small, [f"--target-returns={word}"], configs=configs).target_returns == ()
    with pytest.raises(SystemExit):
        parse(Small, ["--target-returns=1", "--help"], {"target_returns": ()}, configs=configs)
    assert "(default: none)" in " ".join(capsys.readouterr().out.split())


def test_precedence_dataclass_algo_defaults_file_flags(configs: Path, tmp_path: Path) -> None:
    assert parse(Small, [], configs=configs) == Small(steps=7, lr=1e-4)
    assert parse(Small, [], {"lr": 0.5}, configs=configs) == Small(steps=7, lr=0.5)
    file = tmp_path / "mine.yaml"
    file.write_text("algo: hare\nsteps: 9\neval-every: 3\n")
    argv = ["--config", str(file), "--steps", "11"]
    expected = Small("hare", 11, 3, 0.5, mode="fast", target_returns=(3600.0, 1800.0))
    assert parse(Small, argv, {"lr": 0.5, "steps": 8}, configs=configs) == expected


def test_rules_judge_the_final_settings_only(configs: Path) -> None:
    (configs / "tortoise.yaml").write_text("steps: 0\n")
    assert parse(Small, ["--steps", "1"], configs=configs).steps == 1
    with pytest.raises(UserError, match=r"--steps: 0 is too few"):
        parse(Small, [], configs=configs)


def test_help_is_complete_and_exits_0(configs: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Small, ["--algo", "hare", "--help"], configs=configs)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ["Train a small thing", "Optimiser steps", "FLOAT,FLOAT", "3600.0,1800.0"]:
        assert part in text
    for field in dataclasses.fields(Small):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "--config" in text


@dataclasses.dataclass(frozen=True)
class RateOptions:
    """How fast it learns."""

    rate: float = 0.1
    """Rate of learning,
    (not of forgetting).
    """


@dataclasses.dataclass(frozen=True)
class BigConfig(RateOptions, Small):
    """Train a big thing."""

    steps: int = 500


def test_help_has_a_title_for_each_class_of_settings(
    configs: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        parse(BigConfig, ["--algo", "hare", "--help"], configs=configs)
    said = " ".join(capsys.readouterr().out.replace("│", " ").replace("|", " ").split())
    assert said.startswith("usage: train.py [-h] [OPTIONS] Train a big thing.")
    _, small, rate = re.split("small options|rate options", said)
    assert "--steps INT Optimiser steps. (default: 500)" in small
    assert "--limit INT --name STR --folder PATH" in small
    assert "How fast it learns." in rate
    assert "Rate of learning, (not of forgetting). (default: 0.1)" in rate


def test_settings_of_several_classes_are_one(configs: Path) -> None:
    argv = ["--rate", "2", "--steps=3", "--algo", "hare"]
    assert parse(BigConfig, argv, {"name": "x"}, configs=configs) == BigConfig(
        "hare", 3, rate=2.0, name="x", mode="fast", target_returns=(3600.0, 1800.0)
    )
    with pytest.raises(UserError, match="unknown flag --rates; did you mean '--rate'"):
        parse(BigConfig, ["--rates", "2"], configs=configs)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--stepz 3", "unknown flag --stepz; did you mean '--steps'?"),
        ("--dataset x", "unknown flag --dataset; see --help"),
        ("--steps x", "--steps: invalid literal for int() with base 10: 'x'"),
        ("--steps", "Missing value for argument '--steps'. Expected 1 values."),
        ("--mode medium", "invalid choice 'medium' for argument '--mode'. Expected one of"),
        ("--target-returns 1,x", "--target-returns: could not convert string to float: 'x'"),
        ("--target-returns 1 2", "unexpected '2'; write --flag VALUE, a list as 1,2"),
        ("--video=False", "unexpected '--video=False'; write --flag VALUE"),
        ("--limit x", "--limit: no type matching {None}|INT could be instantiated from ['x']."),
        ("--algo har", "--algo: unknown algorithm 'har'; did you mean 'hare'?"),
        ("--config nowhere.yaml", "nowhere.yaml: No such file or directory"),
    ],
)
def test_a_bad_flag_is_one_line(argv: str, message: str, configs: Path) -> None:
    with pytest.raises(UserError) as error:
        parse(Small, argv.split(), configs=configs)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("encoding", "terminal"), [("utf-8", True), ("ascii", False)])
def test_a_bad_flag_is_one_line_in_colour_and_in_ascii(
    configs: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, terminal: bool
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding)
    stdout.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(UserError) as error:
        parse(Small, ["--steps", "x"], configs=configs)
    assert str(error.value) == "--steps: invalid literal for int() with base 10: 'x'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown setting 'stepz'; did you mean 'steps'?"),
        ("steps: x", "--steps: invalid literal for int() with base 10: 'x'"),
        ("steps: 1.5", "--steps: invalid literal for int() with base 10: '1.5'"),
        ("steps: true", "--steps: invalid literal for int() with base 10: 'True'"),
        ("name: no", "name: expected str, not False"),
        ("name: 3", "name: expected str, not 3"),
        ("video: 1", "invalid choice '1' for argument '--video'"),
        ("target_returns: 3", "target_returns: expected tuple, not 3; write 'text' or [1, 2]"),
        ("- steps", "expected lines such as 'steps: 1000', not a list"),
        ("steps: [", "not YAML: while parsing a flow node"),
    ],
)
def test_a_bad_file_is_named_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(Small, tmp_path / "bad.yaml")
    assert str(error.value).startswith(f"{tmp_path / 'bad.yaml'}: {message}")
    assert "\n" not in str(error.value)


small_configs = st.builds(
    Small,
    algo=st.text(),
    steps=st.integers(min_value=1),
    lr=st.floats(allow_nan=False),
    video=st.booleans(),
    target_returns=st.lists(st.floats(allow_nan=False)).map(tuple),
    limit=st.none() | st.integers(),
    name=st.none() | st.text().filter(lambda text: text != "None"),
    folder=st.sampled_from([Path("runs"), Path("/a b/c"), Path("-x")]),
    mode=st.sampled_from(["slow", "fast"]),
)


@given(config=small_configs)
def test_saved_and_loaded_is_the_same(config: Small, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    save_config(config, path)
    assert load_config(Small, path) == config


def test_saved_file_reads_in_the_dataclass_order(tmp_path: Path) -> None:
    save_config(Small(lr=math.inf), tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text().splitlines() == [
        "algo: tortoise",
        "steps: 100",
        "eval_every: 10",
        "lr: .inf",
        "video: true",
        "target_returns:",
        "- 1.0",
        "- 2.0",
        "limit: null",
        "name: null",
        "folder: runs",
        "mode: slow",
    ]


def test_changes_are_named() -> None:
    changes = describe_changes(Small(), Small(steps=200, name="x"))
    assert changes == ["steps: 100 -> 200", "name: None -> x"]


def test_a_class_without_a_file_has_no_texts_and_no_traceback():
    typed = dataclasses.make_dataclass("Typed", [("x", int, 1)])
    typed.__module__ = "typed"
    assert texts_of(typed) == {}
