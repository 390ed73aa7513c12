"""S4D on one thread: the C++ scan and chunks in torch beside a kernel of the row's length and FFT.

    python benchmarks/s4d.py

Both start from the layer's parameters, so that building the kernel counts; (B, T, D, N) =
(16, 1024, 128, 64), float32. Ours run with starts; the FFT knows none. Medians of interleaved
repeats in ms, forward and forward + backward.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved, machine
from torch import Tensor

from decision_s4.agents.backbones.s4 import S4D, S4DOptions
from decision_s4.kernels.lti_scan import Impl, lti_scan
from decision_s4.kernels.packing import Packing

ROWS, STEPS, WIDTH, SIZE = 16, 1024, 128, 64


def by_fft(layer: S4D, u: Tensor) -> Tensor:
    """y = u ∗ k, k_l = 2 Re Σ c b a^l (arXiv 2206.11893, section 3.3): kernel, then FFT."""
    a, b, c, *_ = layer.discretise()
    length = u.shape[1]
    powers = torch.exp(torch.log(a)[..., None] * torch.arange(length))  # (D, N / 2, T)
    kernel = 2 * torch.einsum("dn,dnl->dl", c * b, powers).real
    spectrum = torch.fft.rfft(kernel, n=2 * length) * torch.fft.rfft(u.mT, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].mT


def contenders() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    layer = S4D(WIDTH, S4DOptions(d_state=SIZE, train_ssm=True))
    torch.nn.init.normal_(layer.c, std=0.5)
    u = torch.randn(ROWS, STEPS, WIDTH, requires_grad=True)
    state = layer.initial_state(ROWS)
    packing, unbroken = Packing(torch.rand(ROWS, STEPS) < 0.004), Packing.unbroken(ROWS, STEPS)
    trained = [u, *(getattr(layer, name) for name in layer.recurrence_parameters)]

    def by(impl: Impl) -> Callable[[], Tensor]:
        return lambda: lti_scan(u, layer.discretise(), state, packing, impl)[0]

    with torch.no_grad():
        system, _ = layer.constants()
        torch.testing.assert_close(
            lti_scan(u, system, state, unbroken)[0], by_fft(layer, u), rtol=1e-3, atol=1e-3
        )

    def both(scan: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(scan().square().sum(), trained)

    forward = torch.no_grad()
    return {
        "FFT": forward(lambda: by_fft(layer, u)),
        "chunks": forward(by("torch")),
        "C++": forward(by("cpu")),
        "FFT, both": both(lambda: by_fft(layer, u)),
        "chunks, both": both(by("torch")),
        "C++, both": both(by("cpu")),
    }


def table(repeats: int) -> None:
    """Medians, and how many times faster than the FFT."""
    found = interleaved(contenders(), repeats, warmup=2)
    median = {name: 1e3 * float(np.median(seconds)) for name, seconds in found.items()}
    print(f"\nS4D, one thread, (B, T, D, N) = {(ROWS, STEPS, WIDTH, SIZE)}, float32")
    for name, time in median.items():
        peer = median["FFT, both" if "both" in name else "FFT"]
        print(f"{name:18}{time:9.1f} ms{peer / time:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    table(args.repeats)


if __name__ == "__main__":
    main()
