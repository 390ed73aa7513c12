"""gated_linear by flash-linear-attention: for keys that our fused kernels are too narrow for."""

from torch import Tensor

from decision_s4.kernels import fla
from decision_s4.kernels.packing import Packing


def scan(
    q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `gated_linear`. One gate a head is taken as one a key: fla's own kernel for it computes
    wrong gradients on Hopper with some versions of Triton (its issue 640)."""
    fla.check("gated_linear", q, k, v)
    from fla.ops.gla import chunk_gla  # the extra `cuda`

    return fla.scan(chunk_gla, (q, k, v, log_gate.expand(k.shape)), state, packing)
