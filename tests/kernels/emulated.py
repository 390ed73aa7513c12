"""CUDA C++ without a GPU: the same source compiled for the CPU, see emulate.h."""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

HEADER = Path(__file__).resolve().with_name("emulate.h")
COMPILED_IN = ("N", "PER", "S", "G", "TT", "WARPS", "HELP", "RESIDENT", "HOLD_SCAN", "HOLD_HELP")
COMPILED_IN += ("KEPT", "LOW", "EVEN")
FOLDER = tempfile.TemporaryDirectory(prefix="emulated-")


class Kernel:
    """Takes what `nvrtc.Kernel` takes."""

    def __init__(self, source: str, name: str, macros: dict[str, int], threads: int, shared: int):
        sizes = {key: value for key, value in macros.items() if key in COMPILED_IN}
        self.switches = [value for key, value in macros.items() if key not in COMPILED_IN]
        names = tuple(key for key in macros if key not in COMPILED_IN)
        self.library = _library(source, name, tuple(sizes.items()), names)
        self.threads = threads
        assert self.library.bytes() == shared

    def __call__(self, grid, tensors, *sizes) -> None:
        switches = (ctypes.c_int * len(self.switches))(*self.switches)
        pointers = [None if x is None else x.data_ptr() for x in tensors]
        given = (ctypes.c_void_p * len(pointers))(*pointers), (ctypes.c_int * len(sizes))(*sizes)
        self.library.run(switches, *grid, self.threads, *given)
        assert not self.library.misaligned(), "an address that a GPU does not take"


@functools.cache
def _library(
    source: str, name: str, sizes: tuple[tuple[str, int], ...], switches: tuple[str, ...]
) -> ctypes.CDLL:
    """`run(switches, x, y, threads, pointers, sizes)` and `bytes()`, the size of `Tile`."""
    lines = [f"#define {key} {value}" for key, value in sizes]
    lines += ["static int switches[16];", f'#include "{HEADER}"']
    lines += [f"#define {key} switches[{i}]" for i, key in enumerate(switches)]
    lines += [source, 'extern "C" int bytes() { return sizeof(Tile); }']
    lines.append(
        'extern "C" void run(int* s, int x, int y, int threads, void** pointers, int* sizes) {'
        f" std::copy(s, s + {len(switches)}, switches);"
        f" launch({name}, x, y, threads, pointers, sizes); }}"
    )
    path = Path(FOLDER.name) / f"{name}-{'-'.join(str(value) for _, value in sizes)}"
    command = ["g++", "-O0", "-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing"]
    command += ["-fsanitize=alignment", "-x", "c++", "-c", "-", "-o", f"{path}.o"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)
    subprocess.run(["g++", "-shared", f"{path}.o", "-o", f"{path}.so"], check=True)
    return ctypes.CDLL(f"{path}.so")
