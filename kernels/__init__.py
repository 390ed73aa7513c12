"""Sequence operations, each as one function with a naive oracle beside its fast paths.

    from decision_s4.kernels.lti_scan import lti_scan

So with every folder here: its function has its name, and a step of it stands beside.
"""
