"""gated_linear in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from torch import Tensor

from decision_s4.kernels import compiled_scan
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_linear`; of one type. q and k may be (B, T, 1, K), shared by the heads."""
    return compiled_scan.scan("gated_linear", library, (q, k, v, log_gate, state), packing)
