"""Run folders: safe names, never mixed with another run."""

from pathlib import Path

import pytest

from decision_s4.agents.run_dir import create_run_dir, default_run_dir
from decision_s4.envs.errors import UserError


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"),
        ("a/b-v0,c/d-v0", "a-b-v0-c-d-v0"),
        ("/data/../My set.hdf5", "data-..-My-set.hdf5"),
        ("..", "unnamed"),
        ("x" * 500, "x" * 120),
    ],
)
def test_an_id_becomes_one_folder(data: str, name: str) -> None:
    path = default_run_dir("decision-s4", data, 3, Path("runs"))
    assert path.parent == Path("runs/decision-s4") / name
    assert path.name.startswith("3-20")


def test_a_run_never_enters_a_used_folder(tmp_path: Path) -> None:
    path = create_run_dir(tmp_path / "a" / "b")
    assert create_run_dir(path) == path
    (path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"already holds a run; continue it with --resume"):
        create_run_dir(path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run: Not a directory; choose another run folder"):
        create_run_dir(tmp_path / "file" / "run")
