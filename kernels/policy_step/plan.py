"""A whole policy over linear state-space layers, as the plain tensors that one step reads.

Shapes: B rows, R, F, A features of return-to-go (1), observation and previous action, D width,
n = N/2 states of a channel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.lti_scan.system import System


class Affine(NamedTuple):
    """x (…, in) -> x @ weight + bias (…, out). The weight is (in, out): nn.Linear's, transposed."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Layer normalisation over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float


class Mlp(NamedTuple):
    """x + second(GELU(first(norm(x))))."""

    norm: Norm
    first: Affine
    second: Affine


class Layer(NamedTuple):
    """x + GELU(mix(GELU(system(norm(x)) + d · norm(x)))), then the MLP if there is one."""

    norm: Norm
    system: System
    d: Tensor
    mix: Affine
    mlp: Mlp | None


class Head(NamedTuple):
    """centre + reach · tanh(linear(x)), or without the tanh."""

    linear: Affine
    centre: Tensor
    reach: Tensor
    squash: bool


class Plan(NamedTuple):
    """head(norm(layers(project(GELU(embed([R; s; a] − shift))))))."""

    shift: Tensor
    """(1 + F + A,) subtracted from the inputs."""
    embed: Affine
    project: Affine
    layers: tuple[Layer, ...]
    norm: Norm
    head: Head | None
    """None: the step's output is the normalised features (B, D)."""

    @property
    def dtype(self) -> torch.dtype:
        """The real type of states and outputs."""
        return self.shift.dtype


class Inputs(NamedTuple):
    """What one step of B rows reads."""

    return_to_go: Tensor
    """(B,)"""
    observation: Tensor
    """(B, F)"""
    previous_action: Tensor
    """(B, A); ignored where `start`."""
    start: Tensor
    """(B,) bool: first step of an episode, the state is zero before it."""
