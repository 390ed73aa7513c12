"""Values learned from later values: networks that follow, and what a value is to become.

Shapes: B transitions, E critics.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def target_of(module: Module) -> Module:
    """A copy whose weights follow, untrained: a target network."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Polyak averaging: θ' ← (1 − rate) θ' + rate θ."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def one_step_target(
    reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float
) -> Tensor:
    """y = r + γ (1 − terminated) V(s'), all (B,). A truncated episode's value goes on."""
    return reward + discount * next_value * ~terminated


def squared_error(values: Tensor, target: Tensor) -> Tensor:
    """Σ_i mean (Q_i − y)² of values (E, B) and targets, (B,) or (E, B)."""
    return (values - target).square().mean(1).sum()
