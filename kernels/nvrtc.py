"""CUDA C++ compiled by the library that comes with torch, NVRTC: no nvcc, a second or two each.

What it compiled is kept beside torch's extensions, so that a kernel is compiled once a machine.
"""

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@functools.cache
def misfit(device: torch.device) -> str | None:
    """Why nothing can be compiled for a GPU; None if it can."""
    if torch.version.cuda is None:
        return "needs a torch for CUDA"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    try:
        _compiler(), _driver()
    except OSError as error:
        return f"needs NVRTC, which comes with torch for CUDA: {error}"
    return None


class Kernel:
    """A kernel on the current device; it takes pointers, None for none, then 32-bit integers.

    Args:
        source: CUDA C++ without includes.
        name: of the kernel, declared extern "C".
        macros: what the source is compiled for.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
    """

    def __init__(self, source: str, name: str, macros: dict[str, int], threads: int, shared: int):
        self.threads, self.shared = threads, shared
        major, minor = torch.cuda.get_device_capability()
        options = [f"-D{key}={value}" for key, value in macros.items()]
        arch = f"sm_{major}{minor}{'a' if major >= 9 else ''}"  # a: what later GPUs need not have
        options += [f"--gpu-architecture={arch}", "--std=c++17", "-default-device"]
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        run = _driver()
        _enter(torch.cuda.current_device())
        _check(run.cuModuleLoadData(ctypes.byref(module), compiled(source, options)))
        _check(run.cuModuleGetFunction(ctypes.byref(self.function), module, name.encode()))
        _check(run.cuFuncSetAttribute(self.function, SHARED_MEMORY, shared))

    def __call__(
        self, grid: tuple[int, int], tensors: Sequence[Tensor | None], *sizes: int
    ) -> None:
        pointers = (ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors)
        values = [*pointers, *map(ctypes.c_int, sizes)]
        arguments = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        _enter(torch.cuda.current_device())
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        block = self.threads, 1, 1, self.shared
        _check(_driver().cuLaunchKernel(self.function, *grid, 1, *block, stream, arguments, None))


def compiled(source: str, options: list[str]) -> bytes:
    """The machine code of `source`, kept in a file.

    Raises:
        RuntimeError: with the compiler's log where it does not compile.
    """
    text = "\n".join([str(torch.version.cuda), *options, source])
    path = _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.cubin"
    if not path.exists():
        code = _compile(source, options)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_bytes(code)
        written.replace(path)  # at once, whoever else writes it
    return path.read_bytes()


def _folder() -> Path:
    from decision_s4.kernels.extension import cache_root  # where nothing compiles, not imported

    folder = cache_root() / "decision_s4_cubins"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(source: str, options: list[str]) -> bytes:
    run, program = _compiler(), ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    run.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        if run.nvrtcCompileProgram(program, len(options), given):
            log = _read(run.nvrtcGetProgramLogSize, run.nvrtcGetProgramLog, program)
            raise RuntimeError(f"a CUDA kernel does not compile: {log.decode()}")
        return _read(run.nvrtcGetCUBINSize, run.nvrtcGetCUBIN, program)
    finally:
        run.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: Callable[..., int], read: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    read(program, text)
    return text.raw


@functools.cache
def _compiler() -> ctypes.CDLL:
    return ctypes.CDLL(f"libnvrtc.so.{str(torch.version.cuda).partition('.')[0]}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _enter(device: int) -> None:
    """Makes torch's context of a device this thread's, where it has none yet."""
    context, run = ctypes.c_void_p(), _driver()
    _check(run.cuCtxGetCurrent(ctypes.byref(context)))
    if not context:
        _check(run.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        _check(run.cuCtxSetCurrent(context))


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code}: {(text.value or b'unknown').decode()}")
