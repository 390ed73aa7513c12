"""ssd fused for CUDA: gated linear attention with a gate a head, q = C and k = B for all heads."""

from torch import Tensor

from decision_s4.kernels.gated_linear import triton as gated_linear
from decision_s4.kernels.packing import Packing


def scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """See `ssd`."""
    v = x * delta[..., None]
    log_gate = (delta * A)[..., None]
    shared = C[:, :, None], B[:, :, None]
    y, final = gated_linear.scan(*shared, v, log_gate, state.transpose(2, 3), packing)
    return y, final.transpose(2, 3)
