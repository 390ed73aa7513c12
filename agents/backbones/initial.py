"""How parameters begin that several layers have in common."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.envs.errors import UserError


def check_counts(options: Any, *names: str) -> None:
    """Raises UserError for an option, of those named, that is below 1."""
    for name in names:
        if (value := getattr(options, name)) < 1:
            raise UserError(f"{name} {value} must be at least 1")


def check_range(options: Any, low: str, high: str) -> None:
    """Raises UserError where two options, by name, are no range of positive numbers."""
    least, most = getattr(options, low), getattr(options, high)
    if not 0 < least <= most < math.inf:
        raise UserError(f"{low} {least} and {high} {most} need 0 < {low} <= {high} < inf")


def log_uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    """Logarithms of numbers drawn log-uniformly between two."""
    least, most = math.log(low), math.log(high)
    return least + (most - least) * torch.rand(shape)


def time_step_bias(shape: int | tuple[int, ...], low: float, high: float) -> nn.Parameter:
    """b for time steps softplus(b), log-uniform between two."""
    dt = torch.exp(log_uniform(shape, low, high))
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹(dt)


def depthwise(shape: int | tuple[int, ...], taps: int) -> nn.Parameter:
    """Of a convolution of so many taps, each channel alone, as nn.Conv1d begins."""
    bound = taps**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
