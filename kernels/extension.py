"""C++ libraries of the kernels: compiled once a machine, when first asked for."""

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

LOG = logging.getLogger(__name__)

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
    from torch.utils import cpp_extension

    level = torch.backends.cpu.get_cpu_capability()
    march = (f"-march={LEVELS[level]}",) if level in LEVELS else ()
    name = f"decision_s4_{op}_{level.lower()}"
    LOG.info("%s: loading the C++ library %s, compiled if new (about 30 s)", op, name)
    return cpp_extension.load(
        name,
        [str(source)],
        extra_cflags=[*FLAGS, *flags, *march],
        extra_ldflags=["-fopenmp"],
    )


def library_or_none(op: str, load: Callable[[], ModuleType], instead: str) -> ModuleType | None:
    """What `load` returns; None, with a warning that says what runs `instead`, where it fails."""
    try:
        return load()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = str(error).splitlines()[0]
        LOG.warning(
            "%s: no C++ library (%s); %s: install a C++ compiler and ninja", op, reason, instead
        )
        return None
