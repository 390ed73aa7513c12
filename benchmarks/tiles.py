"""The tiles of fused kernels, each timed on this GPU: `python benchmarks/tiles.py [--what s6]`.

Sets the constants of a module in turn; forward, forward + backward: medians in ms by CUDA events.
What does not compile or run says so.
"""

import argparse
import itertools
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import lti
import numpy as np
import torch
from timing import machine
from torch import Tensor

from decision_s4.kernels.lti_scan import triton as lti_module
from decision_s4.kernels.packing import Packing
from decision_s4.kernels.selective_scan import triton as s6_module
from decision_s4.kernels.short_conv import short_conv
from decision_s4.kernels.short_conv import triton as conv_module

BESIDE = runpy.run_path(str(Path(__file__).with_name("kernels.py")))
S6 = {"CHANNELS": (16, 32), "STATES": (4, 8), "REGISTERS": (128, 168, None)}
CONV = {"TIME": (16, 32, 64), "CHANNELS": (32, 64)}
CHOICES = ["s6", "lti", "conv"]
LTI = {"CHUNK": (64, 32), "WARPS": (8, 4, 16), "MANY": (512, 1 << 30)}


def milliseconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Median of one call's time on the GPU."""
    call(), call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
    for begin, end in zip(marks[::2], marks[1::2], strict=True):
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    pairs = zip(marks[::2], marks[1::2], strict=True)
    return float(np.median([begin.elapsed_time(end) for begin, end in pairs]))


def sweep(module: ModuleType, choices: dict[str, tuple], name: str, make: Callable) -> None:
    """`make()` gives the calls by name, once the constants are set."""
    for values in itertools.product(*choices.values()):
        for constant, value in zip(choices, values, strict=True):
            setattr(module, constant, value)
        label = ", ".join(f"{c} {v}" for c, v in zip(choices, values, strict=True))
        try:
            cells = [f"{way} {milliseconds(call):.3f}" for way, call in make().items()]
        except Exception as error:  # too many registers or too much shared memory
            torch.cuda.empty_cache()
            cells = [f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"]
        print(f"{name}; {label}: {'; '.join(cells)}", flush=True)


def conv_calls(size: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    """The fused convolution of four taps, and torch's shifts beside it."""
    rows, steps, channels = size
    packing = Packing(torch.rand(rows, steps, device="cuda") < 0.004)
    shapes = size, (channels, 4), (channels,), (rows, channels, 3)
    inputs = [torch.randn(shape, device="cuda").requires_grad_() for shape in shapes]
    dy = torch.randn_like(inputs[0])
    made: dict[str, Callable[[], object]] = {}
    for impl in ("triton", "torch"):
        made[f"{impl} forward"] = torch.no_grad()(partial(_conv, inputs, packing, impl))
        made[f"{impl} both"] = partial(_conv_and_back, inputs, packing, impl, dy)
    return made


def _conv(inputs: list[Tensor], packing: Packing, impl: Any) -> Tensor:
    x, weight, bias, state = inputs
    return short_conv(x, weight, bias, state, packing, impl)[0]


def _conv_and_back(inputs: list[Tensor], packing: Packing, impl: Any, dy: Tensor) -> object:
    return torch.autograd.grad(_conv(inputs, packing, impl), inputs, dy)


def s6_calls(size: tuple[int, int, int, int]) -> dict[str, Callable[[], object]]:
    inputs = BESIDE["make_inputs"](*size, device="cuda", dtype=torch.bfloat16)
    start = torch.rand(size[:2], device="cuda") < 0.001
    return BESIDE["both_ways"](BESIDE["ours"]("triton", start), inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=CHOICES, nargs="+", default=CHOICES)
    given = parser.parse_args()
    print(f"{machine()}; {torch.cuda.get_device_name()}", flush=True)
    if "conv" in given.what:
        for size in ((1, 2048, 128), (64, 1000, 512)):
            sweep(conv_module, CONV, f"short_conv {size}", lambda size=size: conv_calls(size))
    if "lti" in given.what:
        for rows in ((1, 2048), (64, 1000)):
            sweep(lti_module, LTI, f"lti {rows}", lambda rows=rows: lti_calls(rows))
    if "s6" in given.what:
        for wide in ((8, 2048, 2048, 16), (64, 1000, 256, 16)):
            sweep(s6_module, S6, f"s6 {wide}", lambda wide=wide: s6_calls(wide))


def lti_calls(size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    made = lti.calls(*size, True, "cuda", vars(lti_module)["CHUNK"])
    ways = "triton forward", "triton both, c alone"
    return {name: call for name, call in made.items() if name in ways}


if __name__ == "__main__":
    main()
