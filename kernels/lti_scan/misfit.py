"""What the fused lti_scan does not take; Triton need not be installed to know."""

import torch

from decision_s4.kernels.lti_scan.system import System

MOST_STATES = 64


def misfit(system: System, kind: torch.dtype = torch.float32) -> str | None:
    """The reason in words for `system` and inputs of a `kind`; None if it takes them."""
    states = 2 * system.a.shape[1]
    for each in (kind, system.dtype):
        if each != torch.float32:
            return f"needs float32, not {each}"
    return None if states <= MOST_STATES else f"takes up to {MOST_STATES} states, not {states}"
