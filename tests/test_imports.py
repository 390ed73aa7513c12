"""Who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import decision_s4

ROOT = Path(decision_s4.__file__).parent
FOLDERS = {"agents", "configs", "data", "envs", "kernels"}
PROGRAMS = {"train", "evaluate"}
# file or folder -> what of ours it may import, and which libraries besides the standard one
RULES = {
    "kernels": ({"kernels"}, {"torch", "triton", "filelock", "fla", "mamba_ssm"}),
    "agents/backbones": (
        {"agents.backbones", "kernels", "envs.errors"},
        {"torch", "numpy", "yaml"},
    ),
    "agents/probes": ({"agents", "envs"}, None),
    "envs": ({"envs"}, None),
    "agents": ({"agents", "envs", "kernels"}, None),
    "data": ({"data", "envs"}, None),
}


def python_files(folder: Path = ROOT) -> list[Path]:
    """Those of the repository, without what a build or a virtual environment left in it."""
    rooms = [folder / name for name in (*FOLDERS, "tests", "benchmarks")]
    return sorted([*folder.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))])


def imports(source: str) -> Iterator[str]:
    """Full names of what a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name: str, rooms: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def forbidden(source: str, ours: set[str], libraries: set[str] | None) -> list[str]:
    """What a file imports although it may not."""
    found = set(imports(source))
    allowed = {f"decision_s4.{room}" for room in ours} | {"decision_s4.__file__"}
    inside = {name for name in found if within(name, {"decision_s4"})} - {"decision_s4"}
    wrong = {name for name in inside if not within(name, allowed)}
    if libraries is not None:
        outside = found - inside - {"decision_s4"}
        wrong |= {name for name in outside if not within(name, libraries | STANDARD)}
    return sorted(wrong)


STANDARD = set(sys.stdlib_module_names)


def rule_of(path: Path) -> tuple[set[str], set[str] | None] | None:
    """The rule of the innermost folder that has one."""
    name = path.relative_to(ROOT).as_posix()
    return next((RULES[r] for r in sorted(RULES, reverse=True) if name.startswith(f"{r}/")), None)


@pytest.mark.parametrize("folder", RULES)
def test_each_room_enters_only_those_it_may(folder):
    files = [path for path in python_files() if rule_of(path) is RULES[folder]]
    assert files
    wrong = {str(path): forbidden(path.read_text("utf-8"), *RULES[folder]) for path in files}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_ours_are_imported_by_their_full_names(path):
    """`agents`, `envs` and `kernels` are other people's import names too."""
    names = set(imports(path.read_text("utf-8")))
    assert not {name for name in names if within(name, FOLDERS | PROGRAMS)}
    assert not {name for name in names if name.startswith(".")}


def test_of_minari_nothing_private_is_imported():
    """It may move with any release; the spaces that old sets lack are no reason."""
    for path in python_files():
        names = [n for n in imports(path.read_text("utf-8")) if within(n, {"minari"})]
        assert not [name for name in names if "._" in name], path


def test_the_programs_are_imported_by_nothing_but_tests():
    programs = {f"decision_s4.{name}" for name in PROGRAMS}
    for path in python_files():
        if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks"):
            assert not {name for name in imports(path.read_text("utf-8")) if name in programs}, path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from decision_s4.kernels.packing import Packing", []),
        ("import decision_s4", []),
        ("import torch.nn, math", []),
        ("def f():\n    from decision_s4.agents import policy", ["decision_s4.agents.policy"]),
        ("from decision_s4 import agents", ["decision_s4.agents"]),
        ("from decision_s4.kernels_of_others import x", ["decision_s4.kernels_of_others.x"]),
        ("import numpy as np", ["numpy"]),
    ],
)
def test_the_check_sees_what_it_should(source, found):
    assert forbidden(source, *RULES["kernels"]) == found


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("decision_s4", {"torch", "numpy", "gymnasium"}),
        ("decision_s4.envs.errors", {"torch", "numpy", "gymnasium"}),
        ("decision_s4.kernels.lti_scan", {"gymnasium", "yaml"}),
        ("decision_s4.agents.backbones", {"gymnasium"}),
        ("decision_s4.agents.actor", {"minari", "h5py", "mujoco", "tyro", "rich"}),
        ("decision_s4.train", {"tensorboard", "matplotlib", "mujoco", "imageio", "pandas"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(module, unneeded):
    code = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unneeded & set(out.stdout.split())
