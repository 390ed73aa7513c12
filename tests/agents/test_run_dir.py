"""Run folders: safe names, never mixed with another run."""

from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from decision_s4.agents.run_dir import alone_in, create_run_dir, default_run_dir
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
def test_an_id_becomes_one_folder(data: str, name: str, tmp_path: Path) -> None:
    path = default_run_dir("decision-s4", data, 3, tmp_path / "runs")
    assert path.parent == tmp_path / "runs/decision-s4" / name
    assert path.name.startswith("3-20")


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {default_run_dir("ppo", "Hopper-v5", 0, tmp_path) for _ in range(20)}
    assert len(folders) == 20
    assert all(create_run_dir(folder) == folder for folder in folders)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    """The lock goes with the process that holds it."""
    held, ready = get_context("spawn").Event(), get_context("spawn").Event()
    other = get_context("spawn").Process(target=hold, args=(tmp_path, held, ready))
    other.start()
    assert held.wait(60)
    with pytest.raises(UserError, match="another process trains there"), alone_in(tmp_path):
        pass
    other.kill()
    with alone_in(tmp_path):
        other.join()


def hold(run_dir: Path, held: Event, never: Event) -> None:
    with alone_in(run_dir):
        held.set()
        never.wait()


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
