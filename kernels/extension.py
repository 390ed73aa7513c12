"""C++ libraries of the kernels: compiled once a machine, when first asked for."""

import functools
import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock, Timeout
from torch import Tensor

LOG = logging.getLogger(__name__)
HEADERS = Path(__file__).parent  # for all libraries; one may have some beside its source

# Not -ffast-math: linked into a library it makes the whole process flush small numbers to zero.
FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
# Named levels in place of -march=native: a cache shared by machines never holds a wrong one.
LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


def compile_library(op: str, source: Path, flags: tuple[str, ...] = ()) -> ModuleType:
    """The library of `op`, from torch's extension cache or built now by the machine's compiler.

    Args:
        op: name in the log and of the library, which also names the instruction set.
        source: the C++ file.
        flags: compiler flags besides FLAGS.

    Raises:
        RuntimeError, OSError, ImportError, subprocess.SubprocessError: where it cannot be built.
    """
    from torch.utils import cpp_extension  # slow to import

    level = torch.backends.cpu.get_cpu_capability()
    march = (f"-march={LEVELS[level]}",) if level in LEVELS else ()
    name = f"decision_s4_{op}_{level.lower()}"
    headers = [*sorted(source.parent.glob("*.h")), *sorted(HEADERS.glob("*.h"))]
    texts = {path.name: path.read_bytes() for path in (source, *headers)}
    folder = build_folder(name, texts)
    if not (folder / f"{name}.so").exists():
        LOG.info("%s: compiling its C++ library, once on this machine: half a minute or so", op)
    with alone(op, folder):
        _write(folder, texts)
        return cpp_extension.load(
            name,
            [str(folder / source.name)],
            extra_cflags=[*FLAGS, *flags, *march],
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
        )


def cache_root() -> Path:
    """Where torch keeps extensions: TORCH_EXTENSIONS_DIR, or its own default."""
    from torch.utils.cpp_extension import get_default_build_root  # slow to import

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def build_folder(name: str, texts: dict[str, bytes]) -> Path:
    """Where a library is built: a place for each version of Python, of torch and of its sources, so
    that two versions of this package do not build in turns."""
    versions = f"py{platform.python_version()}-torch{torch.__version__}"
    of_sources = hashlib.sha256(b"".join(texts.values())).hexdigest()[:8]
    folder = cache_root() / versions / f"{name}-{of_sources}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(folder: Path, texts: dict[str, bytes]) -> None:
    """The sources, beside what is built of them; left alone where they are there."""
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != text:
            path.write_bytes(text)


@contextmanager
def alone(op: str, folder: Path) -> Iterator[None]:
    """One process at a time builds in a folder. The operating system ends a dead one's lock.

    torch's own, a file named `lock`, outlives a process that is killed, and whoever comes after
    waits for it for ever; under ours nobody else can hold it.
    """
    lock = FileLock(folder / "alone.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOG.warning("%s: another process builds its C++ library in %s; waiting", op, folder)
        lock.acquire()
    try:
        (folder / "lock").unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def library_beside(
    module: str, instead: str = "running in torch", flags: tuple[str, ...] = ()
) -> Callable[[], ModuleType | None]:
    """What gives the library of the cpp file beside a kernel's module, loaded at the first call.

    It gives None, with a warning that says what runs `instead`, where the library cannot be built.

    Args:
        module: the module's file, in the folder that is named for the kernel.
        instead: for the warning.
        flags: compiler flags besides FLAGS.
    """
    source = Path(module).with_suffix(".cpp")

    @functools.cache
    def library() -> ModuleType | None:
        op = source.parent.name
        try:
            return compile_library(op, source, flags)
        except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
            reason = str(error).splitlines()[0]
            LOG.warning("%s: no C++ library (%s); %s: %s", op, reason, instead, _remedy(error))
            return None

    return library


def _remedy(error: Exception) -> str:
    """What lets the library be built: a folder for it, or a compiler."""
    place, root = Path(str(getattr(error, "filename", None) or "c++")), cache_root()
    if place.is_relative_to(root) or root.is_relative_to(place):
        return f"make {root} writable, or set TORCH_EXTENSIONS_DIR to another folder"
    return "install a C++ compiler and ninja"


def plain(x: Tensor) -> Tensor:
    """Its numbers as they lie in memory: neither conjugation nor a sign is still to be applied."""
    return x.resolve_conj().resolve_neg().contiguous()
