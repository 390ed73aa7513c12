"""Scans of matrix-valued states over packed rows, and what their tests share."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from decision_s4.kernels.packing import Packing

HEADS, KEY, VALUE = 2, 3, 4  # of the gated linear scan and of the delta rule
SSD_HEADS, WIDTH, SIZE = 3, 2, 4


def gated_linear_input(
    rows: int, steps: int, lowest: float = -1.0, gates: int = KEY
) -> list[Tensor]:
    """q, k (B, T, H, K), v (B, T, H, V), log gates in [lowest, 0], state (B, H, K, V)."""
    shapes = [(rows, steps, HEADS, width) for width in (KEY, KEY, VALUE, gates)]
    *qkv, gate = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    state = torch.randn(rows, HEADS, KEY, VALUE, dtype=torch.float64)
    gate = lowest * torch.rand_like(gate)
    return [each.requires_grad_() for each in (*qkv, gate, state)]


def delta_rule_input(rows: int, steps: int, lowest: float = -1.0, gates: int = KEY) -> list[Tensor]:
    """q, k, β k (B, T, H, K) with |k| = 1 and β in (0, 2), v, log gates in [lowest, 0], state."""
    q, k = torch.randn(2, rows, steps, HEADS, KEY, dtype=torch.float64)
    k = F.normalize(k, dim=-1)
    w = 2 * torch.rand(rows, steps, HEADS, 1, dtype=torch.float64) * k
    v = torch.randn(rows, steps, HEADS, VALUE, dtype=torch.float64)
    gate = lowest * torch.rand(rows, steps, HEADS, gates, dtype=torch.float64)
    state = torch.randn(rows, HEADS, KEY, VALUE, dtype=torch.float64)
    return [each.detach().requires_grad_() for each in (q, k, w, v, gate, state)]


def ssd_input(rows: int, steps: int, strength: float = 1.0) -> list[Tensor]:
    """x (B, T, H, P), delta (B, T, H), A (H,), B and C (B, T, N), state (B, H, P, N)."""
    double = torch.float64
    x = torch.randn(rows, steps, SSD_HEADS, WIDTH, dtype=double)
    delta = strength * torch.rand(rows, steps, SSD_HEADS, dtype=double)
    A = -torch.arange(SSD_HEADS, dtype=double)  # the first head forgets nothing
    B, C = torch.randn(2, rows, steps, SIZE, dtype=double)
    state = torch.randn(rows, SSD_HEADS, WIDTH, SIZE, dtype=double)
    return [each.requires_grad_() for each in (x, delta, A, B, C, state)]


@dataclass(frozen=True)
class Scan:
    """One of the operations, all of which take a state last but for the packing."""

    name: str
    make_input: Callable[[int, int], list[Tensor]]
    in_time: tuple[int, ...]  # inputs (B, T, …)

    def module(self, name: str) -> ModuleType:
        """`naive`, `chunked` or `cpu` of its room."""
        return importlib.import_module(f"decision_s4.kernels.{self.name}.{name}")

    @property
    def step(self) -> Callable:
        return getattr(
            importlib.import_module(f"decision_s4.kernels.{self.name}"), f"{self.name}_step"
        )

    @property
    def loop(self) -> Callable:
        return self.module("naive").scan

    def run(self, impl: str) -> Callable:
        room = importlib.import_module(f"decision_s4.kernels.{self.name}")
        return functools.partial(getattr(room, self.name), impl=impl)


SCANS = [
    Scan("gated_linear", gated_linear_input, (0, 1, 2, 3)),
    Scan("delta_rule", delta_rule_input, (0, 1, 2, 3, 4)),
    Scan("ssd", ssd_input, (0, 1, 3, 4)),
]


def outcome(run, inputs, packing: Packing) -> list[Tensor]:
    """Outputs, final state, and the gradient of a loss on both in every input."""
    o, final = run(*inputs, packing)
    loss = (o * torch.arange(o.numel()).view_as(o).sin()).sum() + final.cos().sum()
    return [o, final, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


def assert_all_near(found, expected, tolerance=1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
