"""delta_rule in C++ (cpu.cpp), with its gradients. Compiled once a machine."""

from torch import Tensor

from decision_s4.kernels import compiled_scan
from decision_s4.kernels.extension import library_beside
from decision_s4.kernels.packing import Packing

library = library_beside(__file__)


def scan(
    q: Tensor, k: Tensor, w: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    inputs = [x.to(state.dtype) for x in (q, k, w, v, log_gate, state)]
    return compiled_scan.scan("delta_rule", library, inputs, packing)
