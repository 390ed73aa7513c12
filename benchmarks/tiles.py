"""The tiles of the fused scans, each timed on this GPU: `python benchmarks/tiles.py [--what s6]`.

Sets the constants of a module in turn; forward, forward + backward: medians in ms by CUDA events.
What does not compile or run says so.
"""

import argparse
import itertools
from collections.abc import Callable
from types import ModuleType

import lti
import numpy as np
import torch
from timing import machine

import kernels
from decision_s4.kernels.lti_scan import triton as lti_module
from decision_s4.kernels.selective_scan import triton as s6_module

S6 = {"CHANNELS": (16, 32), "STATES": (4, 8), "REGISTERS": (128, 168, None)}
LTI = {"CHUNK": (64, 32), "WARPS": (8, 4, 16)}


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


def s6_calls(size: tuple[int, int, int, int]) -> dict[str, Callable[[], object]]:
    inputs = kernels.make_inputs(*size, device="cuda", dtype=torch.bfloat16)
    start = torch.rand(size[:2], device="cuda") < 0.001
    return kernels.both_ways(kernels.ours("triton", start), inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=["s6", "lti"], nargs="+", default=["s6", "lti"])
    given = parser.parse_args()
    print(f"{machine()}; {torch.cuda.get_device_name()}", flush=True)
    if "lti" in given.what:
        for size in ((1, 2048), (64, 1000)):
            sweep(lti_module, LTI, f"lti {size}", lambda size=size: lti_calls(size))
    if "s6" in given.what:
        for size in ((8, 2048, 2048, 16), (64, 1000, 256, 16)):
            sweep(s6_module, S6, f"s6 {size}", lambda size=size: s6_calls(size))


def lti_calls(size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    made = lti.calls(*size, True, "cuda", lti_module.CHUNK)
    ways = "triton forward", "triton both, c alone"
    return {name: call for name, call in made.items() if name in ways}


if __name__ == "__main__":
    main()
