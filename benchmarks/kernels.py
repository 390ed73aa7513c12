"""Scans: ours beside what others run, forward and forward + backward.

    python benchmarks/kernels.py                  CPU: S6 on one and two threads beside mambapy's
                                                  pscan, GRU, LSTM and AL-RNN on a batch of Hopper
                                                  beside torch's packed GRU and LSTM, S4D beside FFT
    python benchmarks/kernels.py --device cuda    S6 beside mamba-ssm, accelerated-scan and the
                                                  memory's bandwidth, gated linear attention
                                                  beside fla

Peers that do not import are left out, in one line. Ours runs with episode starts, theirs without,
for they have none. Medians of interleaved repeats in ms; "x": how many times faster than the peer.
"""

import argparse
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import s4d
import torch
from timing import interleaved, interleaved_on_gpu
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from decision_s4.envs.batches import PackedBatches
from decision_s4.envs.datasets import load
from decision_s4.kernels.almost_linear import almost_linear
from decision_s4.kernels.gated_scan import gated_scan
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.selective_scan import selective_scan

Scan = Callable[..., Tensor]


def make_inputs(
    rows: int, steps: int, channels: int, states: int, **kind: Any
) -> dict[str, Tensor]:
    """Inputs of a Mamba layer at its initialisation; A and D in float32, the others in `kind`."""
    torch.manual_seed(0)
    device = kind["device"]
    sizes = {"u": channels, "delta": channels, "B": states, "C": states, "z": channels}
    inputs = {name: torch.randn(rows, steps, size, **kind) for name, size in sizes.items()}
    inputs["A"] = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    inputs["D"] = torch.ones(channels, device=device)
    inputs["delta_bias"] = torch.full((channels,), -4.6, device=device)  # softplus: 0.01
    return {name: x.requires_grad_() for name, x in inputs.items()}


def both_ways(scan: Scan, inputs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """The forward pass without gradients, and with the backward pass."""
    sample = scan(**inputs)
    dy = torch.randn_like(sample)

    def train() -> object:
        return torch.autograd.grad(scan(**inputs), list(inputs.values()), dy, allow_unused=True)

    return {"forward": torch.no_grad()(lambda: scan(**inputs)), "both": train}


def ours(impl: Any, start: Tensor | None) -> Scan:
    def scan(**inputs: Any) -> Tensor:
        return selective_scan(**inputs, delta_softplus=True, start=start, impl=impl)[0]

    return scan


def mambapy_scan() -> Scan | None:
    """mambapy's parallel scan inside what its MambaBlock does around it."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        print("mambapy does not import: no peer on the CPU (pip install mambapy)")
        return None

    def scan(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
        delta = torch.nn.functional.softplus(delta + delta_bias)[..., None]
        h = pscan(torch.exp(delta * A), delta * B[:, :, None] * u[..., None])
        return ((h @ C[..., None]).squeeze(-1) + D * u) * torch.nn.functional.silu(z)

    return scan


def mamba_ssm_scan() -> Scan | None:
    """mamba-ssm's fused kernel, on inputs in the layout it takes (`by_channel`)."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        print(f"mamba-ssm does not import ({error}): no peer on the GPU")
        return None

    def scan(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)

    return scan


def accelerated_scan() -> Scan | None:
    """accelerated-scan's first-order scan of all states, inside what Mamba does around it."""
    try:
        from accelerated_scan.warp import scan as first_order  # compiles with nvcc
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        print(f"accelerated-scan does not import ({reason}): not compared")
        return None
    return around(first_order)


def around(first_order: Scan) -> Scan:
    """Mamba's S6 by a scan of gates and tokens (B, D · N, T), T a power of two."""

    def states_last(x: Tensor, steps: int) -> Tensor:
        return nn.functional.pad(x.flatten(2).mT, (0, steps - x.shape[1])).contiguous()

    def scan(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
        steps = u.shape[1]
        padded = 1 << (steps - 1).bit_length()
        delta = nn.functional.softplus(delta + delta_bias)
        gates = states_last(torch.exp(delta[..., None] * A), padded)
        tokens = states_last((delta * u)[..., None] * B[:, :, None], padded)
        h = first_order(gates, tokens)[..., :steps].unflatten(1, A.shape)
        y = torch.einsum("bdnt,btn->btd", h, C.to(h.dtype))
        return ((y + D * u) * nn.functional.silu(z)).to(u.dtype)

    return scan


def by_channel(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B, T, …) as (B, …, T)."""
    moved = {n: x.detach().mT.contiguous() if x.ndim == 3 else x for n, x in inputs.items()}
    return {name: x.detach().requires_grad_() for name, x in moved.items()}


def table(
    title: str,
    contenders: dict[str, Scan],
    peer: str,
    inputs: dict[str, Tensor],
    repeats: int,
    timer: Callable = interleaved,
    of_peer: dict[str, Tensor] | None = None,
) -> dict:
    """Prints medians and ratios; returns the medians in seconds by (name, pass).

    `of_peer`: the peer's inputs, where they are laid out in another way.
    """
    calls = {
        (name, way): call
        for name, scan in contenders.items()
        for way, call in both_ways(scan, of_peer if of_peer and name == peer else inputs).items()
    }
    seconds = timer(calls, repeats, warmup=2)
    median = {key: float(np.median(s)) for key, s in seconds.items()}
    print(f"\n{title}\n{'':16}{'forward':>12}{'x':>8}{'both':>12}{'x':>8}")
    for name in contenders:
        cells = ""
        for way in ("forward", "both"):
            theirs = median.get((peer, way))
            ratio = f"{theirs / median[name, way]:8.2f}" if theirs else f"{'':8}"
            cells += f"{median[name, way] * 1e3:9.2f} ms{ratio}"
        print(f"{name:16}{cells}")
    return median


def on_cpu(threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    size = 16, 256, 128, 16
    inputs = make_inputs(*size, device="cpu", dtype=torch.float32)
    start = torch.rand(size[:2]) < 0.02
    contenders = {impl: ours(impl, start) for impl in ("naive", "torch", "cpu")}
    peer = mambapy_scan()
    contenders |= {"mambapy": peer} if peer else {}
    title = f"CPU, {threads} threads, (B, T, D, N) = {size}, float32"
    table(title, contenders, "mambapy", inputs, repeats)


def recurrences(repeats: int) -> None:
    """Nonlinear ones of width 64 over a training batch, one thread; each beside its peer."""
    torch.set_num_threads(1)
    batch = next(PackedBatches(load("hopper-mixed"), 3000, 0))
    packing = Packing(batch.start, batch.valid)
    counts = packing.chunks(1).counts
    title = f"CPU, 1 thread, {sum(counts)} steps of Hopper in {counts[0]} episodes, "
    title += f"the longest {len(counts)}, width 64, float32"
    for kind in (nn.GRU, nn.LSTM):
        contenders, inputs = gated(kind, packing)
        table(f"{kind.__name__}, {title}", contenders, "nn packed", inputs, repeats)
    contenders, inputs = almost_linears(packing)
    table(f"AL-RNN, {title}", contenders, "torch", inputs, repeats)


def gated(kind: type, packing: Packing) -> tuple[dict[str, Scan], dict[str, Tensor]]:
    """Ours from packed rows to packed rows; the peer gets its PackedSequence ready made."""
    torch.manual_seed(0)
    network, rows = kind(64, 64), torch.randn(packing.rows, packing.steps, 64)
    state = torch.zeros(packing.rows, 2 if kind is nn.LSTM else 1, 64)
    order = packing.chunks(1)
    counts, data = torch.tensor(order.counts), rows.flatten(0, 1)[order.source.squeeze(1)]

    def ours(impl: Any) -> Scan:
        return lambda x, **_: gated_scan(x, network, state, packing, impl)[0]

    def theirs(data: Tensor, **_: Tensor) -> Tensor:
        return network(PackedSequence(data, counts))[0].data

    impls = ("torch", "fused", "cpu")
    contenders = {impl: ours(impl) for impl in impls} | {"nn packed": theirs}
    inputs = {"x": rows.requires_grad_(), "data": data.requires_grad_()}
    return contenders, inputs | dict(network.named_parameters())


def almost_linears(packing: Packing) -> tuple[dict[str, Scan], dict[str, Tensor]]:
    torch.manual_seed(0)
    inputs = {"u": torch.randn(packing.rows, packing.steps, 64), "decay": torch.rand(64)}
    inputs["weight"] = torch.randn(64, 64) / 128
    state = torch.zeros(packing.rows, 64)

    def ours(impl: Any) -> Scan:
        return lambda **inputs: almost_linear(
            **inputs, linear=48, state=state, packing=packing, impl=impl
        )[0]

    contenders = {impl: ours(impl) for impl in ("torch", "cpu")}
    return contenders, {name: x.requires_grad_() for name, x in inputs.items()}


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy on this GPU."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    seconds = interleaved({"copy": copy}, 20, warmup=3)["copy"]
    return 2 * source.numel() * source.element_size() / float(np.median(seconds))


def special_rate() -> float:
    """Special functions (2^x, 1/x) a second of this GPU at its highest clock: 16 a clock and SM."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    megahertz = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
    return 16 * torch.cuda.get_device_properties(0).multi_processor_count * megahertz * 1e6


def on_cuda(size: tuple[int, int, int, int], repeats: int) -> None:
    """Share of the roofline: the longer of compulsory bytes (bfloat16, with gate: 10 an element
    forward, 18 back) at the bandwidth of a copy, and N + 4 special functions a pass."""
    inputs = make_inputs(*size, device="cuda", dtype=torch.bfloat16)
    start = torch.rand(size[:2], device="cuda") < 0.001
    contenders = {impl: ours(impl, start) for impl in ("cuda", "triton")}
    contenders["no starts"] = ours("cuda", None)
    peer = mamba_ssm_scan()
    contenders |= {"mamba-ssm": peer} if peer else {}
    other = accelerated_scan()
    contenders |= {"accelerated-scan": other} if other else {}
    bandwidth, special = copy_bandwidth(), special_rate()
    title = f"{torch.cuda.get_device_name()}, (B, T, D, N) = {size}, bfloat16"
    title += f"; copy {bandwidth / 1e12:.2f} TB/s"
    given = inputs, repeats, interleaved_on_gpu, by_channel(inputs)
    median = table(title, contenders, "mamba-ssm", *given)
    elements = size[0] * size[1] * size[2]
    least = {k: elements * max(k / bandwidth, (size[3] + 4) / special) for k in (10, 18)}
    for way, bound in (("forward", least[10]), ("both", least[10] + least[18])):
        share = bound / median["cuda", way]
        print(f"{way}: roofline {bound * 1e3:.3f} ms; {share:.0%} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only-s6", action="store_true", help="on CUDA")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.device == "cuda":
        for size in ((8, 2048, 2048, 16), (64, 1000, 256, 16)):
            on_cuda(size, args.repeats)
        if not args.only_s6:
            import gated_linear  # needs Triton

            gated_linear.report(args.repeats)
        return
    for threads in (1, 2):
        on_cpu(threads, args.repeats)
    recurrences(args.repeats)
    s4d.table(args.repeats)


if __name__ == "__main__":
    main()
