"""A library is built by one process at a time, and none waits for a process that is dead."""

import logging
import subprocess
import sys
import threading

import pytest
from torch.utils import cpp_extension

from decision_s4.kernels import extension

HOLD = """
import sys, time
from pathlib import Path
from decision_s4.kernels import extension
with extension.alone("op", Path(sys.argv[1])):
    (Path(sys.argv[1]) / "lock").touch()  # torch's own
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Folders that torch was asked to build in; it would wait where its lock file lies."""
    folders = []

    def load(name, sources, build_directory, **flags):
        folder = extension.Path(build_directory)
        assert not (folder / "lock").exists()
        folders.append(folder)

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "load", load)
    return folders


def build(folder, text="// nothing"):
    source = folder / "op.cpp"
    source.write_text(text)
    extension.compile_library("op", source)


def hold(folder):
    """A process that builds there."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_process_killed_as_it_builds_blocks_nobody(built, tmp_path):
    build(tmp_path)
    holder = hold(built[0])
    holder.kill()
    holder.wait()
    assert (built[0] / "lock").exists()
    build(tmp_path)
    assert built == [built[0]] * 2 and tmp_path in built[0].parents


def test_whoever_waits_says_so_and_goes_on(built, tmp_path, caplog):
    build(tmp_path)
    holder = hold(built[0])
    with caplog.at_level(logging.WARNING):
        waiting = threading.Thread(target=build, args=(tmp_path,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and len(built) == 1
        holder.kill()
        holder.wait()
        waiting.join(10)
    assert len(built) == 2
    assert f"op: another process builds its C++ library in {built[0]}; waiting" in caplog.text


def test_each_version_of_the_sources_has_a_place_that_the_next_leaves_alone(built, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    build(tmp_path)
    first = built[0] / "op.cpp"
    written = first.stat().st_mtime_ns
    build(tmp_path, "// other")
    build(elsewhere)
    assert built[0] == built[2] != built[1]
    assert first.read_text() == "// nothing" and first.stat().st_mtime_ns == written
    assert (built[0] / "ranks.h").read_text() == (extension.HEADERS / "ranks.h").read_text()


def test_a_cache_that_cannot_be_written_is_named_not_the_compiler(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "op.cpp").touch()
    assert extension.library_beside(str(tmp_path / "op.py"))() is None
    remedy = f"make {tmp_path / 'file' / 'cache'} writable, or set TORCH_EXTENSIONS_DIR to another"
    assert remedy in caplog.text and "compiler" not in caplog.text


def test_a_missing_compiler_is_named(built, monkeypatch, tmp_path, caplog):
    def load(*arguments, **flags):
        raise FileNotFoundError(2, "No such file or directory", "c++")

    monkeypatch.setattr(cpp_extension, "load", load)
    (tmp_path / "op.cpp").touch()
    assert extension.library_beside(str(tmp_path / "op.py"))() is None
    assert "running in torch: install a C++ compiler and ninja" in caplog.text
