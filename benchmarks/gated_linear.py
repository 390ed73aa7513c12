"""Gated linear attention on CUDA: ours beside flash-linear-attention, forward and with backward.

    python benchmarks/gated_linear.py --compile-first [--configs] [--fla-configs 1]

bfloat16, gates in float32. "fused" runs without a start, "resets" with one in 250 steps; fla has no
starts in batches. "x": how many times faster than fla. Errors are ‖ours − naive‖ / ‖naive‖ of the
outputs and the gates' gradients, naive in float64, at the first size. --configs times every
configuration of our kernels, --fla-configs holds each of fla's to so many, which else tunes for
minutes. --compile-first lets a process a size fill Triton's cache, side by
side, before anything is timed: compiling takes most of a minute a size.
"""

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from timing import interleaved
from torch import Tensor
from triton.runtime.errors import TritonError

from decision_s4.kernels import fla
from decision_s4.kernels.gated_linear import gated_linear, naive
from decision_s4.kernels.gated_linear import triton as fused
from decision_s4.kernels.packing import Packing

SIZES = [(8, 64, 4, 64), (16, 256, 8, 64), (64, 1000, 4, 16), (4, 8192, 16, 64)]  # B, T, H, K = V
Scan = Callable[..., tuple[Tensor, Tensor]]


def make_inputs(rows: int, steps: int, heads: int, width: int, gates: int) -> list[Tensor]:
    """q, k, v, log gates, state."""
    torch.manual_seed(0)
    wide = rows, steps, heads, width
    q, k, v = (torch.randn(wide, device="cuda").bfloat16() for _ in range(3))
    gate = torch.nn.functional.logsigmoid(torch.randn(*wide[:3], gates, device="cuda")) / 16
    state = torch.zeros(rows, heads, width, width, device="cuda")
    return [x.requires_grad_() for x in (q * width**-0.5, k, v, gate, state)]


def fla_scan(per_key: bool, most: int | None = None) -> Scan | None:
    try:
        from fla.ops.gla import chunk_gla
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        print(f"fla does not import ({error}): no peer (pip install fla-core)")
        return None
    if most is not None:
        fla.settle(chunk_gla, most)

    def scan(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        gate = gate if per_key else gate.squeeze(-1)
        run = chunk_gla if per_key else chunk_simple_gla
        return run(q, k, v, gate, scale=1.0, initial_state=state, output_final_state=True)

    return scan


def both_ways(scan: Scan, inputs: list[Tensor]) -> dict[str, Callable[[], None]]:
    do = torch.randn_like(inputs[2])

    def forward() -> None:
        with torch.no_grad():
            scan(*inputs)
        torch.cuda.synchronize()

    def train() -> None:
        torch.autograd.grad(scan(*inputs)[0], inputs, do)
        torch.cuda.synchronize()

    return {"forward": forward, "both": train}


def table(title: str, contenders: dict[str, Scan], inputs: list[Tensor], repeats: int) -> None:
    """Medians in ms, and how many times faster than fla; what is refused, with the reason."""
    calls = {}
    for name, scan in contenders.items():
        for way, call in both_ways(scan, inputs).items():
            try:
                call()
            except (RuntimeError, TritonError) as error:
                print(f"{title:34}{name:20}  {way}: {str(error).splitlines()[0]}", flush=True)
            else:
                calls[name, way] = call
    found = interleaved(calls, repeats, warmup=5)
    median = {key: 1e3 * float(np.median(seconds)) for key, seconds in found.items()}
    for name in contenders:
        cells = ""
        for way in ("forward", "both"):
            mine = median.get((name, way), np.nan)
            cells += f"  {way} {mine:7.3f} ms x{median.get(('fla', way), np.nan) / mine:5.2f}"
        print(f"{title:34}{name:20}{cells}", flush=True)


def contenders(
    size: tuple[int, ...], per_key: bool, configs: bool, most: int | None
) -> dict[str, Scan]:
    rows, steps = size[:2]
    unbroken = Packing.unbroken(rows, steps, torch.device("cuda"))
    resets = Packing(torch.rand(rows, steps, device="cuda") < 0.004)
    peer = fla_scan(per_key, most)
    scans: dict[str, Scan] = {"fla": peer} if peer else {}
    scans["fused"] = functools.partial(fused.scan, packing=unbroken)
    scans["resets"] = functools.partial(fused.scan, packing=resets)
    if configs:
        for config in fused.PER_KEY if per_key else fused.PER_HEAD:
            name = f"chunk {config.chunk} warps {config.warps}"
            scans[name] = functools.partial(fused.scan, packing=unbroken, config=config)
    elif rows * steps < 100_000:
        scans["torch"] = functools.partial(gated_linear, packing=unbroken, impl="torch")
    return scans


def errors(inputs: list[Tensor], scans: dict[str, Scan]) -> str:
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    q, k, v, gate, state = exact
    o, _ = naive.scan(q, k, v, gate, state, Packing.unbroken(*q.shape[:2]))
    (dgate,) = torch.autograd.grad(o.sum(), exact[3])
    cells = []
    for name in ("fla", "fused"):
        if name in scans:
            found, _ = scans[name](*inputs)
            try:
                (gradient,) = torch.autograd.grad(found.sum(), inputs[3])
            except RuntimeError:  # refused, as `table` has said
                continue
            pairs = (found, o), (gradient, dgate)
            cells += [f"{name}"] + [f"{(a.cpu() - b).norm() / b.norm():.1e}" for a, b in pairs]
    return "  ".join(cells)


def report(
    repeats: int,
    sizes: Sequence[int] = range(len(SIZES)),
    configs: bool = False,
    most: int | None = None,
) -> None:
    """Prints the tables of the sizes asked for."""
    print(torch.cuda.get_device_name())
    for per_key in (True, False):
        for i in sizes:
            size = SIZES[i]
            inputs = make_inputs(*size, gates=size[3] if per_key else 1)
            scans = contenders(size, per_key, configs, most)
            kind = "gate a key" if per_key else "gate a head"
            table(f"{kind} {size}", scans, inputs, repeats)
            if i == 0:
                print("errors:", errors(inputs, scans))


def compile_first(sizes: Sequence[int], configs: bool, most: int | None = None) -> None:
    """One untimed round of each size in a process of its own."""
    flags = ["--repeats", "1", *(["--configs"] if configs else [])]
    flags += [*(["--fla-configs", str(most)] if most else []), "--sizes"]
    command = [sys.executable, __file__, *flags]
    quiet = subprocess.DEVNULL
    for process in [subprocess.Popen([*command, str(size)], stdout=quiet) for size in sizes]:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help="which")
    parser.add_argument("--compile-first", action="store_true")
    parser.add_argument("--fla-configs", type=int, help="each of its kernels is tuned among")
    args = parser.parse_args()
    if args.compile_first:
        compile_first(args.sizes, args.configs, args.fla_configs)
    report(args.repeats, args.sizes, args.configs, args.fla_configs)


if __name__ == "__main__":
    main()
