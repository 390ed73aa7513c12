"""On CUDA: GRU, LSTM and the almost-linear recurrence beside cuDNN's and torch's loop.

    python benchmarks/recurrent.py

Rows with an episode start in 250 steps, float32, as many inputs as units. Medians of interleaved
repeats in ms, forward and forward + backward; "x": how many times faster than the first line.
"cuDNN" gets the episodes as a PackedSequence, whose layout was computed before; "unbroken" is
torch.nn's own call on the rows as they are, without starts.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from libraries import table  # beside this file
from torch import Tensor, nn

from decision_s4.kernels.almost_linear import almost_linear
from decision_s4.kernels.gated_scan import gated_scan
from decision_s4.kernels.packing import Packing

SIZES = [(3, 1000, 64), (16, 256, 64), (3, 1000, 128), (64, 1000, 64)]  # B, T, H
Scan = Callable[..., tuple[Tensor, Tensor]]


def gated(kind: type[nn.GRU | nn.LSTM], size: tuple[int, int, int], repeats: int) -> None:
    rows, _, width = size
    network, packing = kind(width, width, batch_first=True).cuda(), packed(size)
    x = torch.randn(*size, device="cuda", requires_grad=True)
    state = torch.zeros(rows, 2 if kind is nn.LSTM else 1, width, device="cuda", requires_grad=True)

    def run(impl: Any, x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return gated_scan(x, network, state, packing, impl)

    def unbroken(x: Tensor, state: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        parts = tuple(part[None].contiguous() for part in state.unbind(1))
        return network(x, parts if len(parts) > 1 else parts[0])[0], state

    scans: dict[str, Scan] = {
        name: functools.partial(run, impl)
        for name, impl in (("triton", "triton"), ("cuDNN", "fused"), ("torch", "torch"))
    }
    scans["unbroken"] = unbroken
    table(f"{kind.__name__} {size}", scans, [x, state, *network.parameters()], repeats)


def almost(size: tuple[int, int, int], repeats: int) -> None:
    rows, _, units = size
    floats = torch.randn(*size), torch.rand(units), torch.randn(units, units) / (2 * units)
    inputs = [x.cuda().requires_grad_() for x in (*floats, torch.zeros(rows, units))]
    packing = packed(size)

    def run(
        impl: Any, u: Tensor, decay: Tensor, weight: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return almost_linear(u, decay, weight, units - units // 4, state, packing, impl)

    scans: dict[str, Scan] = {impl: functools.partial(run, impl) for impl in ("triton", "torch")}
    table(f"almost_linear {size}", scans, inputs, repeats)


def packed(size: tuple[int, int, int]) -> Packing:
    torch.manual_seed(0)
    packing = Packing(torch.rand(size[:2], device="cuda") < 0.004)
    packing.chunks(1)
    return packing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in SIZES:
        for kind in (nn.GRU, nn.LSTM):
            gated(kind, size, repeats)
        almost(size, repeats)


if __name__ == "__main__":
    main()
