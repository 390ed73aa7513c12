"""What the fused lti_scan does not take; Triton need not be installed to know."""

import torch

from decision_s4.kernels.lti_scan.system import System

MOST_STATES = 64


def misfit(system: System) -> str | None:
    """The reason in words for `system`; None if it takes it."""
    states = 2 * system.a.shape[1]
    if system.dtype != torch.float32:
        return f"needs float32, not {system.dtype}"
    return None if states <= MOST_STATES else f"takes up to {MOST_STATES} states, not {states}"
