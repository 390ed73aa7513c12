"""Sequence operations, each as one function with a naive oracle beside its fast paths."""
