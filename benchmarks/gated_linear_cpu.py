"""gated_linear and ssd on the CPU, C++ beside torch: `python benchmarks/gated_linear_cpu.py`.

The operations at sizes of training and beyond, with a start in 250 steps, ms forward and forward +
backward; then whole updates of Decision S4 on the layers they serve, width 64, batches of 3,000
steps of Hopper. One thread; medians of interleaved repeats by the process's own time.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from scans_on_cpu import IMPLS, Kind, begin, beside, medians
from torch import Tensor

from decision_s4.agents.backbones import gated_linear as layers
from decision_s4.agents.backbones import linear_attention, mamba2, retnet
from decision_s4.agents.config import parse
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs.datasets import load
from decision_s4.envs.task import task_of
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.ssd import ssd

WIDTHS = [(3, 1000, 4, 16, 16), (3, 1000, 4, 16, 32), (3, 1000, 4, 32, 17), (1, 3000, 4, 16, 16)]
WIDTHS += [(3, 1000, 4, 128, 128), (1, 20, 4, 128, 128), (1, 1, 4, 16, 16), (64, 20, 4, 16, 16)]
SSD = [(3, 1000, 4, 64, 32), (3, 1000, 4, 16, 32), (1, 20, 4, 128, 64), (1, 1, 4, 64, 32)]
"""(B, T, H, K, V); for ssd K is N and V is P."""
Made = tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor]]
LAYERS: dict[str, tuple[ModuleType, str]] = {
    "gla": (layers, "gated_linear"),
    "hgrn2": (layers, "gated_linear"),
    "lightning": (layers, "gated_linear"),
    "retnet": (retnet, "gated_linear"),
    "linear-attention": (linear_attention, "gated_linear"),
    "hedgehog": (linear_attention, "gated_linear"),
    "mamba2": (mamba2, "ssd"),
}


def attention(size: tuple[int, ...], dtype: torch.dtype, gates: int) -> Made:
    rows, steps, heads, key, value = size
    q, k = torch.randn(2, rows, steps, heads, key, dtype=dtype)
    v = torch.randn(rows, steps, heads, value, dtype=dtype)
    gate = -torch.rand(rows, steps, heads, gates, dtype=dtype)
    return gated_linear, [q, k, v, gate, torch.randn(rows, heads, key, value, dtype=dtype)]


def state_space(size: tuple[int, ...], dtype: torch.dtype) -> Made:
    rows, steps, heads, states, width = size
    x = torch.randn(rows, steps, heads, width, dtype=dtype)
    delta, A = torch.rand(rows, steps, heads, dtype=dtype), -torch.rand(heads, dtype=dtype)
    B, C = torch.randn(2, rows, steps, states, dtype=dtype)
    return ssd, [x, delta, A, B, C, torch.randn(rows, heads, width, states, dtype=dtype)]


def calls(made: Made) -> dict[Any, Callable[[], object]]:
    """Forward alone, and with the backward pass, of each implementation."""
    run, inputs = made
    inputs = [x.requires_grad_() for x in inputs]
    packing, d_o = Packing(torch.rand(inputs[0].shape[:2]) < 1 / 250), None

    def both(impl: Kind) -> object:
        nonlocal d_o
        o, _ = run(*inputs, packing, impl)
        d_o = torch.randn_like(o) if d_o is None else d_o
        return torch.autograd.grad(o, inputs, d_o)

    def forward(impl: Kind) -> object:
        with torch.no_grad():
            return run(*inputs, packing, impl)

    ways = {"forward": forward, "both": both}
    return {
        (impl, way): functools.partial(call, impl) for impl in IMPLS for way, call in ways.items()
    }


def updates(backbone: str) -> dict[Any, Callable[[], object]]:
    """One update, of a run for each implementation."""
    flags = f"--algo decision-s4 --backbone {backbone} --batch-steps 3000"
    config, data = parse(TrainConfig, flags.split()), load("hopper-mixed")
    module, name = LAYERS[backbone]
    operation = getattr(module, name)

    def by(impl: Kind) -> Callable[[], object]:
        run = Training(config, data, task_of(data, "none", ()), torch.device("cpu"))

        def update() -> object:
            with patch.object(module, name, lambda *given: operation(*given[:-1], impl)):
                return run.update()

        return update

    return {impl: by(impl) for impl in IMPLS}


def operations(repeats: int) -> None:
    print("| (B, T, H, K, V) | gates | | forward: torch | C++ | × | both: torch | C++ | × |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.float64):
        kind, cases = str(dtype).removeprefix("torch."), {}
        for size in WIDTHS:
            cases[size, "a key"] = functools.partial(attention, size, dtype, size[3])
            cases[size, "a head"] = functools.partial(attention, size, dtype, 1)
        cases |= {(size, "ssd"): functools.partial(state_space, size, dtype) for size in SSD}
        for (size, gates), make in cases.items():
            torch.manual_seed(0)
            cells = beside(medians(calls(make()), repeats), 2)
            print(f"| {size} | {gates} | {kind} |{cells}", flush=True)
    print()


def main() -> None:
    given = begin(__doc__.partition("\n")[0])
    if not given.updates:
        operations(given.repeats)
    print("| an update of | torch | C++ | × |\n|---|---|---|---|")
    for backbone in LAYERS:
        ms = medians(updates(backbone), given.repeats)
        before, after = ms["torch"], ms["cpu"]
        print(f"| {backbone} | {before:.1f} | {after:.1f} | {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
