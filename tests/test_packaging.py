"""What is installed is whole: pyproject.toml names every folder and all files beside modules."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = ("agents", "configs", "data", "envs", "kernels")


def files(suffix: str) -> list[Path]:
    """Relative paths in the rooms that are installed, caches left out."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob(f"*{suffix}") if path.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def test_every_folder_of_modules_is_a_package():
    folders = {".".join(("decision_s4", *path.parent.parts)) for path in files(".py")}
    assert folders <= set(SETUPTOOLS["packages"])


def test_its_types_are_known_where_it_is_installed():
    assert "py.typed" in SETUPTOOLS["package-data"]["decision_s4"]
    assert (ROOT / "py.typed").is_file()


def test_every_other_file_travels_with_a_package():
    patterns = [
        "/".join((*package.split(".")[1:], pattern))
        for package, own in SETUPTOOLS["package-data"].items()
        for pattern in own
    ]
    others = [path.as_posix() for path in files("") if path.suffix != ".py"]
    assert [path for path in others if not any(fnmatch(path, p) for p in patterns)] == []
