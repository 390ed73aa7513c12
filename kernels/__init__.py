"""Sequence operations, each as one function with a naive oracle beside its fast paths."""

from decision_s4.kernels.selective_scan import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
