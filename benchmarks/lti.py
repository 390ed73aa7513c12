"""lti_scan by implementation: `python benchmarks/lti.py [--device cuda]`.

A row packed as in training, a batch of rows, and a long row; 64 channels of 64 states, as S4
(`low rank`) and S4D; episodes of 250 steps on average. "c alone": with what follows from the other
constants prepared, as in training with train_ssm off. Medians of interleaved repeats.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import interleaved, machine

from decision_s4.kernels.lti_scan import System, lti_scan, prepare
from decision_s4.kernels.lti_scan.prepared import CHUNK
from decision_s4.kernels.packing import Packing

SIZES = (1, 2048), (16, 1024), (64, 1000), (1, 65_536)


def make(rows: int, steps: int, low_rank: bool, device: str) -> tuple:
    """u, system, state, packing."""
    torch.manual_seed(0)
    h, n, kind = 64, 32, torch.complex64
    fields = [torch.polar(torch.rand(h, n).sqrt(), torch.randn(h, n))]
    fields += [torch.randn(h, n, dtype=kind) for _ in range(2)]
    fields += [0.01 * torch.randn(h, n, dtype=kind) for _ in range(2 if low_rank else 0)]
    u, state = torch.randn(rows, steps, h), torch.zeros(rows, h, n, 2)
    u, state, *fields = (x.to(device) for x in (u, state, *fields))
    start = torch.rand(rows, steps, device=device) < 1 / 250
    return u.requires_grad_(), System(*fields), state, Packing(start)


def calls(
    rows: int, steps: int, low_rank: bool, device: str, chunk: int = CHUNK
) -> dict[str, Callable[[], object]]:
    """Forward alone, and with the backward pass, of each implementation."""
    u, system, state, packing = make(rows, steps, low_rank, device)
    dy, prepared = torch.randn_like(u), prepare(system, chunk)
    frozen = system._replace(c=system.c.clone().requires_grad_())
    trained = System._make(z if z is None else z.clone().requires_grad_() for z in system)

    def forward(system: System, **how: Any) -> Callable[[], object]:
        return torch.no_grad()(lambda: lti_scan(u, system, state, packing, **how))

    def both(system: System, **how: Any) -> Callable[[], object]:
        inputs = [u, *(z for z in system if z is not None and z.requires_grad)]

        def run() -> object:
            return torch.autograd.grad(lti_scan(u, system, state, packing, **how)[0], inputs, dy)

        return run

    ways: dict[str, dict[str, Any]] = {"torch": {"impl": "torch"}}
    if device == "cuda":
        ways["triton"] = {"impl": "triton", "prepared": prepared}
    else:
        ways["cpu"] = {"impl": "cpu"}
    made = {}
    for name, how in ways.items():
        made[f"{name} forward"] = forward(frozen, **how)
        made[f"{name} both, c alone"] = both(frozen, **how)
        made[f"{name} both, all"] = both(trained, impl=name)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    print(f"{machine()}\n\n| rows, steps | system | | ms |\n|---|---|---|---|")
    for low_rank in (True, False):
        for rows, steps in SIZES:
            made = calls(rows, steps, low_rank, given.device)
            timed = {name: synchronised(call) for name, call in made.items()}
            for name, seconds in interleaved(timed, given.repeats, warmup=3).items():
                kind, ms = "S4" if low_rank else "S4D", 1e3 * float(np.median(seconds))
                print(f"| {rows}, {steps} | {kind} | {name} | {ms:.3f} |", flush=True)


def synchronised(call: Callable[[], object]) -> Callable[[], None]:
    """Done when its work on the GPU is."""

    def run() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
