"""policy_step in C++: one call a step. Compiled once a machine, when first asked for."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.policy_step.fold import FoldedLayer, fold
from decision_s4.kernels.policy_step.plan import Inputs, Plan

FLAGS = ("-fno-signed-zeros", "-fassociative-math")  # sums may be reordered: they vectorise

library = library_beside(__file__, instead="acting by torch", flags=FLAGS)


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
    return None if compiled is None else CpuStep(compiled, plan)


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
    a, w, v = torch.view_as_real(layer.a).flatten(1), layer.w_row, layer.v_row
    if w is None:
        w = v = torch.zeros_like(a)  # a diagonal system's low rank
    mlp = layer.mlp and (
        compiled.Norm(*layer.mlp.norm),
        compiled.Affine(*layer.mlp.first),
        compiled.Affine(*layer.mlp.second),
    )
    recurrence = compiled.Recurrence(a, layer.b_row, w, v, layer.c_row, layer.d)
    return compiled.Layer(compiled.Norm(*layer.norm), recurrence, compiled.Affine(*layer.mix), mlp)
