"""A plan rewritten so that a step takes fewer operations: the same function up to rounding.

GELU(x) = x / 2 · (1 + erf(x / √2)) becomes G(z) = z + z · erf(z) = √2 · GELU(√2 z), once the
layer before is scaled by 1/√2 and the one after too. The residual stream holds √2 x, which layer
normalisation undoes if its eps doubles.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.policy_step.plan import Affine, Head, Layer, Mlp, Norm, Plan

ROOT = math.sqrt(2)


class FoldedLayer(NamedTuple):
    """A layer for G. Rows are real (D, 2n): complex ones with the two parts interleaved.

    v and c are such that a real dot product with a state's row is 2 Re(z · x).
    """

    norm: Norm
    a: Tensor
    """Complex (D, n)."""
    b_row: Tensor
    w_row: Tensor | None
    """Negated, so that all parts of the new state add up."""
    v_row: Tensor | None
    c_row: Tensor
    d: Tensor
    mix: Affine
    mlp: Mlp | None


class Folded(NamedTuple):
    """A Plan for G."""

    shift: Tensor
    embed: Affine
    project: Affine
    layers: tuple[FoldedLayer, ...]
    norm: Norm
    head: Head | None


def fold(plan: Plan) -> Folded:
    """The plan for G in place of GELU."""
    return Folded(
        plan.shift.contiguous(),
        _scaled(plan.embed, 1 / ROOT, 1 / ROOT),
        _scaled(plan.project, 1.0, ROOT),
        tuple(map(_fold_layer, plan.layers)),
        _on_doubled(plan.norm),
        plan.head and plan.head._replace(linear=_scaled(plan.head.linear, 1.0, 1.0)),
    )


def _fold_layer(layer: Layer) -> FoldedLayer:
    a, b, c, w, v = layer.system
    return FoldedLayer(
        _on_doubled(layer.norm),
        _plain(a),
        _row(b),
        None if w is None else _row(-w),
        None if v is None else _row(2 * v.conj()),
        _row(c.conj() * ROOT),
        layer.d / ROOT,
        _scaled(layer.mix, 0.5, 1 / ROOT),
        layer.mlp and _fold_mlp(layer.mlp),
    )


def _fold_mlp(mlp: Mlp) -> Mlp:
    first, second = _scaled(mlp.first, 1 / ROOT, 1 / ROOT), _scaled(mlp.second, 1.0, ROOT)
    return Mlp(_on_doubled(mlp.norm), first, second)


def _scaled(affine: Affine, weight: float, bias: float) -> Affine:
    return Affine((affine.weight * weight).contiguous(), (affine.bias * bias).contiguous())


def _on_doubled(norm: Norm) -> Norm:
    return norm._replace(eps=2 * norm.eps)


def _row(z: Tensor) -> Tensor:
    return torch.view_as_real(_plain(z)).flatten(1)


def _plain(z: Tensor) -> Tensor:
    return z.resolve_conj().contiguous()
