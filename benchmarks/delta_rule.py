"""The delta rule on CUDA: ours beside flash-linear-attention, forward and with backward.

    python benchmarks/delta_rule.py --compile-first [--configs] [--kernels] [--fla-configs 1]

bfloat16 or, with --float32, float32 (TF32 for fla, three parts of it for ours); gates in float32.
As layers call it: w = β k is made inside. "fused" runs without a start, "resets" with one in 250
steps, "torch" as "fused"; "fla" is its kernel for the kind of gates (delta_rule, gated_delta_rule,
kda), without starts; "fla, any w" what `delta_rule(impl="fla")` runs, with the starts of "resets".
"x": how many times faster than fla. Errors are ‖ours − naive‖ / ‖naive‖ of the outputs and the
gates' gradients, naive in float64, at the first size. --configs times every configuration of our
kernels, --kernels prints the time of each kernel of a call both ways, --fla-configs holds each of
fla's to so many. --compile-first fills Triton's cache, a process a size and kind, before anything
is timed.
"""

import argparse
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable

import torch
from gated_linear import both_ways, table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from triton.runtime.errors import TritonError

from decision_s4.kernels import fla
from decision_s4.kernels.delta_rule import delta_rule, naive
from decision_s4.kernels.delta_rule import triton as fused
from decision_s4.kernels.packing import Packing

SIZES = [(8, 64, 4, 64), (16, 256, 8, 64), (3, 1000, 4, 16), (8, 2048, 8, 64), (4, 8192, 16, 64)]
SIZES += [(4, 2048, 8, 128)]  # B, T, H, K = V
PEERS = {
    "none": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "head": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "key": ("fla.ops.kda", "chunk_kda"),
}
ANY = "fla, any w"
CALLS = 10  # in a profile
Scan = Callable[..., tuple[Tensor, Tensor]]


def make_inputs(size: tuple[int, ...], kind: str, low: torch.dtype) -> list[Tensor]:
    """q, k with |k| = 1, v, β in (0, 1), log gates, state."""
    torch.manual_seed(0)
    rows, _, heads, width = size
    q, k, v = (torch.randn(size, device="cuda").to(low) for _ in range(3))
    k = F.normalize(k.float(), dim=-1).to(low)
    beta = torch.rand(*size[:3], device="cuda").to(low)
    gate = F.logsigmoid(torch.randn(*size[:3], width if kind == "key" else 1, device="cuda")) / 16
    gate = torch.zeros_like(gate) if kind == "none" else gate
    state = torch.zeros(rows, heads, width, width, device="cuda")
    return [x.requires_grad_() for x in (q * width**-0.5, k, v, beta, gate, state)]


def ours(scan: Scan, **more: object) -> Scan:
    def run(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return scan(q, k, beta[..., None] * k, v, gate, state, **more)

    return run


def fla_scan(kind: str, most: int | None) -> Scan | None:
    module, name = PEERS[kind]
    try:
        op = getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"fla does not import ({error}): no peer (pip install fla-core)")
        return None
    if most is not None:
        fla.settle(op, most)

    def scan(
        q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates = {"none": {}, "head": {"g": gate.squeeze(-1)}, "key": {"g": gate}}[kind]
        more = {"scale": 1.0, "initial_state": state, "output_final_state": True}
        o, final = op(q=q, k=k, v=v, beta=beta, **gates, **more)
        return o + 0 * gate.sum() if kind == "none" else o, final

    return scan


def contenders(
    size: tuple[int, ...], kind: str, configs: bool, most: int | None
) -> dict[str, Scan]:
    rows, steps = size[:2]
    device = torch.device("cuda")
    unbroken = Packing.unbroken(rows, steps, device)
    resets = Packing(torch.rand(rows, steps, device=device) < 0.004)
    peer = fla_scan(kind, most)
    scans: dict[str, Scan] = {"fla": peer} if peer else {}
    scans["fused"] = ours(fused.scan, packing=unbroken)
    scans["resets"] = ours(fused.scan, packing=resets)
    if configs:
        for config in fused.CONFIGS:
            name = " ".join(str(part) for part in (*config[:3], *config[3], *config[4]))
            scans[name] = ours(fused.scan, packing=unbroken, config=config)
    else:
        if peer:
            scans[ANY] = ours(delta_rule, packing=resets, impl="fla")
        scans["torch"] = ours(delta_rule, packing=unbroken, impl="torch")
    return scans


def errors(inputs: list[Tensor], scans: dict[str, Scan]) -> str:
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    o, _ = ours(naive.scan, packing=Packing.unbroken(*exact[0].shape[:2]))(*exact)
    (dgate,) = torch.autograd.grad(o.sum(), exact[4])
    cells = []
    for name in ("fla", "fused"):
        if name in scans:
            found, _ = scans[name](*inputs)
            try:
                (gradient,) = torch.autograd.grad(found.sum(), inputs[4])
            except (RuntimeError, TritonError):  # refused, as `table` has said
                continue
            pairs = (found, o), (gradient, dgate)
            cells += [f"{name}"] + [f"{(a.cpu() - b).norm() / b.norm():.1e}" for a, b in pairs]
    return "  ".join(cells)


def kernel_times(scans: dict[str, Scan], inputs: list[Tensor]) -> None:
    """ms of each kernel in a call both ways, longest first."""
    for name, scan in scans.items():
        if name in ("resets", "torch", ANY):
            continue
        train = both_ways(scan, inputs)["both"]
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                for _ in range(CALLS):
                    train()
        except (RuntimeError, TritonError):  # refused, as `table` has said
            continue
        events = sorted(found.key_averages(), key=lambda e: -e.device_time_total)
        cells = [f"{e.key[:40]} {e.device_time_total / CALLS / 1e3:.3f}" for e in events[:14]]
        print(f"  kernels of {name}: {'; '.join(cells)}", flush=True)


def report(args: argparse.Namespace) -> None:
    """Prints the tables of the sizes and kinds asked for."""
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    low = torch.float32 if args.float32 else torch.bfloat16
    torch.set_float32_matmul_precision("high")
    for kind in args.kinds:
        for i in args.sizes:
            inputs = make_inputs(SIZES[i], kind, low)
            scans = contenders(SIZES[i], kind, args.configs, args.fla_configs)
            table(f"gates: {kind} {SIZES[i]}", scans, inputs, args.repeats)
            if i == 0:
                print("  errors:", errors(inputs, scans), flush=True)
            if args.kernels:
                kernel_times(scans, inputs)


def compile_first(args: argparse.Namespace) -> None:
    """One untimed round of each size and kind in a process of its own."""
    flags = ["--repeats", "1"]
    flags += [f"--{name}" for name in ("configs", "float32") if getattr(args, name)]
    flags += ["--fla-configs", str(args.fla_configs)] if args.fla_configs else []
    cases = [(size, kind) for size in args.sizes for kind in args.kinds]
    begin = functools.partial(subprocess.Popen, stdout=subprocess.DEVNULL)
    command = [sys.executable, __file__, *flags]
    for process in [begin([*command, "--sizes", str(i), "--kinds", kind]) for i, kind in cases]:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help="which")
    parser.add_argument("--kinds", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--compile-first", action="store_true")
    parser.add_argument("--fla-configs", type=int, help="each of its kernels is tuned among")
    args = parser.parse_args()
    if args.compile_first:
        compile_first(args)
    report(args)


if __name__ == "__main__":
    main()
