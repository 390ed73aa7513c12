"""Sequence operations, each as one function with a naive oracle beside its fast paths.

    from decision_s4.kernels import selective_scan
    from decision_s4.kernels.lti_scan import lti_scan

Every folder has a function of its name, and a step of it beside.
"""

from decision_s4.kernels.selective_scan import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
