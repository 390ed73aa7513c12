"""A module's call compiled to C++ by torch's inductor: one call in place of hundreds of dispatches.

Parameters and buffers are inputs of what is compiled, so that one library serves all modules that
compute the same; it is kept in the cache of torch's extensions.
"""

import copy
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from decision_s4.kernels.extension import alone, build_folder

LOG = logging.getLogger(__name__)
OPTIONS = {"cpp.threads": 1}  # a step is too short to be shared out
TOLERANCE = 1e-4  # beside the largest number of a result, before a library is trusted
OLDEST = "2.13"  # 2.11, built for CUDA, has crashed as it loaded what it had compiled
TRIAL = "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])"
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
ATEN = torch.ops.aten
REPLACED = {  # inductor cannot call them with complex numbers, but what they are made of
    ATEN.addcmul.default: lambda x, y, z, value=1: x + value * y * z,
    ATEN.sub.Tensor: lambda x, y, alpha=1: x + -alpha * y,
}
Run = Callable[[list[Tensor]], list[Tensor]]


class CompiledRows:
    """`module`, a function of a list of tensors (B, …) on the CPU, to such a list.

    Compiles for each number of rows when it first comes: half a minute or, where the cache has it,
    a few seconds. The module's tensors are taken as they are then. Not differentiable.

    Raises:
        RuntimeError, OSError: at such a call, where it cannot be compiled.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.compiled: dict[int, Run] = {}

    def __call__(self, given: list[Tensor]) -> list[Tensor]:
        given = [x if x.is_contiguous() else x.contiguous() for x in given]
        run = self.compiled.get(len(given[0]))
        if run is None:
            run = self.compiled[len(given[0])] = _compiled(self.module, given)
        return run(given)


class _Bare(nn.Module):
    """`module` as a function of its own tensors too."""

    def __init__(self, module: nn.Module):
        super().__init__()
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        self.call = lambda own, given: torch.func.functional_call(
            module, dict(zip(tensors, own, strict=True)), (given,)
        )
        self.own = [x.contiguous() for x in tensors.values()]

    def forward(self, own: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        return self.call(own, given)


def _compiled(module: nn.Module, given: list[Tensor]) -> Run:
    if torch.__version__ < OLDEST:
        raise RuntimeError(f"compiling needs torch {OLDEST}, this is {torch.__version__}")
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*complex operators|.*LeafSpec")
        bare, sample = _Bare(copy.deepcopy(module).eval()), [x.clone() for x in given]
        program = torch.export.export(bare, (bare.own, sample)).run_decompositions(REPLACED)
        loaded = torch._inductor.aoti_load_package(_package(program, len(given[0])))
    run, own = loaded.loader.run, bare.own  # the loader's own: trees take longer than the step
    _check(run([*own, *sample]), bare(own, sample))
    return lambda given: run([*own, *given])


def _package(program: torch.export.ExportedProgram, rows: int) -> str:
    """The compiled program's file, from the cache or made now."""
    level = torch.backends.cpu.get_cpu_capability().lower()
    folder = build_folder(f"decision_s4_step_{level}", _contents(program))
    path = Path(folder) / "step.pt2"
    LOG.info("acting: loading %s, compiled if new (about half a minute), for %d rows", path, rows)
    with alone("acting", folder):
        if not path.exists():
            _compile(program, path)
    return str(path)


def _compile(program: torch.export.ExportedProgram, path: Path) -> None:
    fresh, options = path.with_name("fresh.pt2"), dict(OPTIONS)  # it writes there
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # of each complex product
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(fresh), inductor_configs=options
    )
    _try(fresh)
    fresh.replace(path)


def _try(path: Path) -> None:
    """Raises RuntimeError for a library that does not load: it may take its process with it, so one
    of its own tries first."""
    done = subprocess.run([sys.executable, "-c", TRIAL, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"its library cannot be loaded (exit code {done.returncode})")


def _contents(program: torch.export.ExportedProgram) -> dict[str, bytes]:
    """All that tells one program from another: its text, less what names files, and constants."""
    constants = [x.contiguous().numpy().tobytes() for x in program.constants.values()]
    text = COMMENT.sub("", str(program))
    return {"program": f"{text}{OPTIONS}".encode(), "constants": b"".join(constants)}


def _check(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Raises RuntimeError for a library that computes something else."""
    for ours, own in zip(found, wanted, strict=True):
        if own.is_floating_point():
            error, size = (ours - own).abs().max(), own.abs().max()
            if not error <= TOLERANCE * size + 1e-6:
                raise RuntimeError(f"what was compiled is off by {error:.1e}, of {size:.1e}")
