"""policy_step in C++: one call a step. Compiled once a machine, when first asked for."""

import functools
import logging
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.policy_step.fold import FoldedLayer, fold
from decision_s4.kernels.policy_step.plan import Inputs, Plan

LOG = logging.getLogger(__name__)

# Sums may be reordered, so that they vectorise. Not -ffast-math: linked into a library it makes
# the whole process flush small numbers to zero.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fno-signed-zeros", "-fassociative-math"]
# Named levels in place of -march=native: a cache shared by machines never holds a wrong one.
LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


def make_cpu_step(plan: Plan) -> "CpuStep | None":
    """The compiled step of a float32 plan on the CPU; None, with a warning, without a library.

    Raises:
        ValueError: for a plan of another type or device.
    """
    if plan.dtype != torch.float32 or plan.shift.device.type != "cpu":
        raise ValueError(
            f"policy_step: impl 'cpu' needs a float32 policy on the CPU, not {plan.dtype} on "
            f"{plan.shift.device}; use 'torch'"
        )
    compiled = library()
    return compiled and CpuStep(compiled, plan)


class CpuStep:
    """See `PolicyStep`."""

    def __init__(self, compiled: ModuleType, plan: Plan):
        folded, none = fold(plan), plan.shift.new_empty(0)
        head = folded.head
        self.step = compiled.PolicyStep(
            folded.shift,
            compiled.Affine(*folded.embed),
            compiled.Affine(*folded.project),
            [_layer(compiled, layer) for layer in folded.layers],
            compiled.Norm(*folded.norm),
            head and compiled.Affine(*head.linear),
            head.centre if head else none,
            head.reach if head else none,
            bool(head and head.squash),
        ).step

    def __call__(
        self, inputs: Inputs, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, after = self.step(*inputs, state)
        return out, tuple(after)


def _layer(compiled: ModuleType, layer: FoldedLayer) -> Any:
    a, b, c_row = (
        torch.view_as_real(layer.a).flatten(1),
        torch.view_as_real(layer.b).flatten(1),
        layer.c_row,
    )
    w, v_row = torch.zeros_like(c_row), torch.zeros_like(c_row)  # a diagonal system's low rank
    if layer.w is not None:
        w, v_row = torch.view_as_real(layer.w).flatten(1), layer.v_row
    mlp = layer.mlp and (
        compiled.Norm(*layer.mlp.norm),
        compiled.Affine(*layer.mlp.first),
        compiled.Affine(*layer.mlp.second),
    )
    recurrence = compiled.Recurrence(a, b, w, v_row, c_row, layer.d)
    return compiled.Layer(compiled.Norm(*layer.norm), recurrence, compiled.Affine(*layer.mix), mlp)


@functools.cache
def library() -> ModuleType | None:
    """The compiled library, from torch's extension cache or built now; None if it cannot be."""
    try:
        return _load()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = str(error).splitlines()[0]
        LOG.warning(
            "policy_step: no C++ library (%s); acting by torch: install a C++ compiler and ninja",
            reason,
        )
        return None


def _load() -> ModuleType:
    from torch.utils import cpp_extension

    level = torch.backends.cpu.get_cpu_capability()
    flags = [*FLAGS, f"-march={LEVELS[level]}"] if level in LEVELS else FLAGS
    name = f"decision_s4_policy_step_{level.lower()}"
    LOG.info("policy_step: loading the C++ library %s, compiled if new (about 30 s)", name)
    return cpp_extension.load(
        name,
        [str(Path(__file__).with_name("cpu.cpp"))],
        extra_cflags=flags,
        extra_ldflags=["-fopenmp"],
    )
