"""diagonal_scan on the CPU, C++ beside torch: `python benchmarks/scans_on_cpu.py [--updates]`.

The operation at sizes of training and beyond, with a start in 250 steps, ms forward and forward +
backward; then whole updates of Decision S4 on S5, LRU, and, by `lti_scan` (lti.py times it alone),
S4 and S4D: width 64, batches of Hopper. One thread; medians of interleaved repeats by the process's
own time.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from timing import interleaved, machine
from torch import Tensor

from decision_s4.agents.backbones import mimo, s4
from decision_s4.agents.config import parse
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs.datasets import load
from decision_s4.envs.task import task_of
from decision_s4.kernels.diagonal_scan import diagonal_scan
from decision_s4.kernels.lti_scan import lti_scan
from decision_s4.kernels.packing import Packing

Kind = Literal["torch", "cpu"]
IMPLS: tuple[Kind, ...] = ("torch", "cpu")
SIZES = [(1, 1, 64), (64, 1, 64), (1, 16, 64), (64, 20, 64), (1, 3000, 64), (64, 1000, 64)]
SIZES += [(1, 3000, 20), (4, 1000, 256)]  # B, T, P
TYPES = (torch.complex64, torch.complex128, torch.float32)


def calls(size: tuple[int, int, int], dtype: torch.dtype) -> dict[Any, Callable[[], object]]:
    """Forward alone, and with the backward pass, of each implementation."""
    rows, steps, poles = size
    torch.manual_seed(0)
    a = torch.randn(poles, dtype=dtype)
    a = (a / (1 + a.abs())).requires_grad_()
    u = torch.randn(*size, dtype=dtype, requires_grad=True)
    state = torch.randn(rows, poles, dtype=dtype, requires_grad=True)
    packing, dx = Packing(torch.rand(rows, steps) < 1 / 250), torch.randn_like(u)

    def both(impl: Kind) -> object:
        return torch.autograd.grad(diagonal_scan(u, a, state, packing, impl)[0], [u, a, state], dx)

    def forward(impl: Kind) -> object:
        with torch.no_grad():
            return diagonal_scan(u, a, state, packing, impl)

    ways = {"forward": forward, "both": both}
    return {
        (impl, way): functools.partial(run, impl) for impl in IMPLS for way, run in ways.items()
    }


def updates(backbone: str, steps: int) -> dict[Any, Callable[[], object]]:
    """One update, of a run for each implementation."""
    flags = f"--algo decision-s4 --backbone {backbone} --batch-steps {steps}"
    config, data = parse(TrainConfig, flags.split()), load("hopper-mixed")

    def by(impl: Kind) -> Callable[[], object]:
        run = Training(config, data, task_of(data, "none", ()), torch.device("cpu"))

        def diagonal(u: Tensor, a: Tensor, state: Tensor, packing: Packing, _: object) -> object:
            return diagonal_scan(u, a, state, packing, impl)

        def invariant(
            u: Tensor, system: Any, state: Tensor, packing: Packing, *_: object
        ) -> object:
            return lti_scan(u, system, state, packing, impl)

        def update() -> object:
            with (
                patch.object(mimo, "diagonal_scan", diagonal),
                patch.object(s4, "lti_scan", invariant),
            ):
                return run.update()

        return update

    return {impl: by(impl) for impl in IMPLS}


def medians(contenders: dict[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    found = interleaved(contenders, repeats, warmup=3, clock=time.process_time)
    return {key: 1e3 * float(np.median(seconds)) for key, seconds in found.items()}


def beside(ms: dict[Any, float], digits: int) -> str:
    """Cells of torch, C++ and how many times as fast, forward and both ways."""
    cells = ""
    for way in ("forward", "both"):
        before, after = ms["torch", way], ms["cpu", way]
        cells += f" {before:.{digits}f} | {after:.{digits}f} | {before / after:.1f} |"
    return cells


def begin(description: str) -> argparse.Namespace:
    """Flags of a comparison, on one thread; prints where it runs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--updates", action="store_true", help="those alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; 1 thread\n")
    return given


def operations(repeats: int) -> None:
    print("| (B, T, P) | | forward: torch | C++ | × | both: torch | C++ | × |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for dtype in TYPES:
            cells = beside(medians(calls(size, dtype), repeats), 3)
            print(f"| {size} | {str(dtype).removeprefix('torch.')} |{cells}", flush=True)
    print()


def main() -> None:
    given = begin(__doc__.partition("\n")[0])
    if not given.updates:
        operations(given.repeats)
    print("| an update of | steps | torch | C++ | × |\n|---|---|---|---|---|")
    for backbone in ("s5", "lru", "s4", "s4d"):
        for steps in (1280, 3000):
            ms = medians(updates(backbone, steps), given.repeats)
            before, after = ms["torch"], ms["cpu"]
            cells = f"{before:.1f} | {after:.1f} | {before / after:.2f}"
            print(f"| {backbone} | {steps} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
