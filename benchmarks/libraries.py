"""On CUDA: ours beside flash-linear-attention, for the choice that is made where none is named.

    python benchmarks/libraries.py

Rows with an episode start in 250 steps, the layout of fla's sequences computed before. Medians of
interleaved repeats in ms, forward and forward + backward; "x": how many times faster than ours.
float32 is multiplied as torch.set_float32_matmul_precision('high') allows.
"""

import argparse
import functools
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved
from torch import Tensor

from decision_s4.kernels.delta_rule import delta_rule
from decision_s4.kernels.gated_linear import gated_linear
from decision_s4.kernels.packing import Packing

Scan = Callable[..., tuple[Tensor, Tensor]]
SIZES = [(3, 1000, 4, 16), (16, 1000, 4, 64), (8, 2048, 8, 64)]  # B, T, H, K = V


def linear_inputs(size: tuple[int, ...], delta: bool, low: torch.dtype) -> list[Tensor]:
    """Arguments of delta_rule (w = k / 2, |k| = 1) or gated_linear, but the packing."""
    torch.manual_seed(0)
    rows, _, heads, width = size
    q, k, v = (torch.randn(*size, device="cuda") for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    inputs = [x.to(low) for x in ((q, k, k / 2, v) if delta else (q, k, v))]
    gate = -0.1 * torch.rand(*size, device="cuda")
    state = torch.zeros(rows, heads, width, width, device="cuda")
    return [x.requires_grad_() for x in (*inputs, gate, state)]


def both_ways(scan: Scan, inputs: list[Tensor]) -> dict[str, Callable[[], None]]:
    def forward() -> None:
        with torch.no_grad():
            scan(*inputs)
        torch.cuda.synchronize()

    def train() -> None:
        torch.autograd.grad(scan(*inputs)[0].sum(), inputs)
        torch.cuda.synchronize()

    return {"forward": forward, "both": train}


def table(title: str, scans: dict[str, Scan], inputs: list[Tensor], repeats: int) -> None:
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    first = next(iter(scans))
    for name, scan in scans.items():
        try:
            scan(*inputs)
        except (ValueError, RuntimeError, ImportError) as error:
            print(f"{title:56}{name:10} {str(error).splitlines()[0]}", flush=True)
            continue
        calls |= {(name, way): call for way, call in both_ways(scan, inputs).items()}
    seconds = interleaved(calls, repeats, warmup=3)
    median = {key: 1e3 * float(np.median(found)) for key, found in seconds.items()}
    for name in dict.fromkeys(name for name, _ in calls):
        cells = ""
        for way in ("forward", "both"):
            times = median.get((first, way), np.nan) / median[name, way]
            cells += f"  {way} {median[name, way]:8.3f} ms x{times:6.2f}"
        print(f"{title:56}{name:10}{cells}", flush=True)


def linear(repeats: int) -> None:
    for size in SIZES:
        packing = Packing(torch.rand(size[:2], device="cuda") < 0.004)
        for low in (torch.bfloat16, torch.float32):
            ops: tuple[Scan, ...] = delta_rule, gated_linear
            for op in ops:
                scans: dict[str, Scan] = {
                    impl: functools.partial(op, packing=packing, impl=impl)
                    for impl in ("triton", "fla", "torch")
                }
                inputs = linear_inputs(size, op is delta_rule, low)
                table(f"{op.__name__} {size} {low}", scans, inputs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_float32_matmul_precision("high")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    linear(repeats)


if __name__ == "__main__":
    main()
