"""What the fused lti_scan does not take; Triton need not be installed to know."""

import torch
from torch import Tensor

from decision_s4.kernels.lti_scan.system import System

MOST_STATES = 64


def misfit(u: Tensor, system: System) -> str | None:
    """The reason in words for `u` and `system`; None if it takes them."""
    states = 2 * system.a.shape[1]
    if u.dtype != torch.float32:
        return f"needs float32, not {u.dtype}"
    return None if states <= MOST_STATES else f"takes up to {MOST_STATES} states, not {states}"
