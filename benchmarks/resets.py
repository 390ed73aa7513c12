"""What episode starts inside rows cost on a GPU, by operation: `python benchmarks/resets.py`.

What runs there by default, at sizes of training, on rows without a start and with one in 250 steps
on average; ms by the GPU's clock, medians of interleaved repeats, forward and forward + backward.
"""

import argparse
import functools
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved_on_gpu, machine
from torch import Tensor

from decision_s4.kernels.delta_rule import delta_rule
from decision_s4.kernels.diagonal_scan import diagonal_scan
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.lti_scan import System, lti_scan
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.selective_scan import selective_scan
from decision_s4.kernels.short_conv import short_conv
from decision_s4.kernels.ssd import ssd

SIZES = [(16, 1024), (8, 2048)]  # rows, steps
Op = tuple[Callable[..., Tensor], list[Tensor]]  # of inputs and the packing; the inputs


def normal(*shape: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=kind)


def operations(rows: int, steps: int) -> dict[str, Op]:
    """By what was made of 256 channels, 4 heads of 64, or 64 channels of 64 states."""
    single, wide = torch.float32, functools.partial(normal, rows, steps)
    gate = -0.1 * torch.rand(rows, steps, 4, 64, device="cuda")
    memory = torch.zeros(rows, 4, 64, 64, device="cuda")
    key = torch.nn.functional.normalize(wide(4, 64), dim=-1)
    poles = torch.polar(torch.rand(64, 32).sqrt(), torch.randn(64, 32)).cuda()
    spread = torch.rand(rows, steps, 4, device="cuda")
    taps = normal(256, 4, kind=single), normal(256, kind=single), normal(rows, 256, 3, kind=single)
    vectors = [normal(64, 32, kind=torch.complex64) / 8 for _ in range(2)]
    read = wide(64, kind=single), wide(64, kind=single)
    selective = wide(256), torch.rand_like(wide(256)), -torch.rand(256, 16, device="cuda"), wide(16)
    return {
        "selective_scan": (
            lambda u, delta, A, B, C, packing: selective_scan(
                u, delta, A, B, C, start=packing.start
            )[0],
            [*selective, wide(16)],
        ),
        "gated_linear": (
            lambda q, k, v, gate, state, packing: gated_linear(q, k, v, gate, state, packing)[0],
            [wide(4, 64) / 8, wide(4, 64), wide(4, 64), gate, memory],
        ),
        "ssd": (
            lambda x, delta, A, B, C, state, packing: ssd(x, delta, A, B, C, state, packing)[0],
            [wide(4, 64, kind=single), spread, -torch.rand(4, device="cuda"), *read, memory],
        ),
        "delta_rule": (
            lambda q, k, w, v, gate, state, packing: delta_rule(q, k, w, v, gate, state, packing)[
                0
            ],
            [wide(4, 64) / 8, key, key / 2, wide(4, 64), gate, memory],
        ),
        "lti_scan": (
            lambda u, a, b, c, state, packing: lti_scan(u, System(a, b, c), state, packing)[0],
            [wide(64, kind=single), poles, *vectors, torch.zeros(rows, 64, 32, 2, device="cuda")],
        ),
        "diagonal_scan": (
            lambda u, a, state, packing: diagonal_scan(u, a, state, packing)[0].real,
            [
                wide(64, kind=torch.complex64),
                poles[0].repeat(2),
                0 * normal(rows, 64, kind=torch.complex64),
            ],
        ),
        "short_conv": (
            lambda x, weight, bias, state, packing: short_conv(x, weight, bias, state, packing)[0],
            [wide(256, kind=single), *taps],
        ),
    }


def calls(run: Callable[..., Tensor], inputs: list[Tensor], packing: Packing) -> dict:
    """Forward alone, and with the backward pass."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    forward = functools.partial(run, *inputs, packing=packing)
    dy = torch.randn_like(forward())
    return {
        "forward": torch.no_grad()(forward),
        "both": lambda: torch.autograd.grad(forward(), inputs, dy, allow_unused=True),
    }


def report(rows: int, steps: int, repeats: int, only: list[str]) -> None:
    start = torch.rand(rows, steps, device="cuda") < 1 / 250
    packings = {
        "no starts": Packing.unbroken(rows, steps, torch.device("cuda")),
        "starts": Packing(start),
    }
    for name, (run, inputs) in operations(rows, steps).items():
        if only and name not in only:
            continue
        made = {
            (label, way): call
            for label, packing in packings.items()
            for way, call in calls(run, inputs, packing).items()
        }
        found = interleaved_on_gpu(made, repeats)
        ms = {key: 1e3 * float(np.median(seconds)) for key, seconds in found.items()}
        cells = [f"| {rows}, {steps} | {name}"]
        for way in ("forward", "both"):
            without, cut = ms["no starts", way], ms["starts", way]
            cells.append(f"{without:.3f} | {cut:.3f} | {cut / without - 1:+.0%}")
        print(" | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=[], help="these operations")
    given = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}; {machine()}\n")
    print("| rows, steps | | forward | with starts | | both | with starts | |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        report(*size, given.repeats, given.only)


if __name__ == "__main__":
    main()
