"""How weights take a step: what optimisers share, and how learning rates fall."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Number = TypeVar("Number", float, Tensor)


def adam(module: nn.Module, rate: float) -> torch.optim.Adam:
    """Adam with its usual constants, for what of the module is trained."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, lr=rate, fused=True)


def take_step(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One gradient step; returns the loss, detached."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def take_own_step(optimiser: torch.optim.Optimizer, loss: Tensor, largest: float) -> Tensor:
    """One step of what the optimiser trains, whatever else the loss depends on.

    Returns the gradient's norm; beyond `largest`, the gradient is shortened to it.
    """
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    optimiser.step()
    return norm


def restore(part: nn.Module | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict`; an optimiser keeps its own rates, which a resumed run may change."""
    if isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    own = [{n: v for n, v in group.items() if n != "params"} for group in part.param_groups]
    part.load_state_dict(state)
    for group, settings in zip(part.param_groups, own, strict=True):
        group.update(settings)


def apart_from_recurrence(policy: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What of a policy is trained: all but its backbone's recurrence, and the recurrence."""
    recurrence = {id(p) for p in policy.backbone.recurrence_parameters()}
    trained = [p for p in policy.parameters() if p.requires_grad]
    rest = [p for p in trained if id(p) not in recurrence]
    return rest, [p for p in trained if id(p) in recurrence]


def half_cosine(progress: Number) -> Number:
    """From 1 at progress 0 down to 0 at 1 and beyond; of a tensor without asking for its value."""
    if isinstance(progress, Tensor):
        return 0.5 * (1 + (math.pi * progress.clamp(max=1)).cos())
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule(kind: str, warmup: int, total: int) -> Callable[[int], float]:
    """The factor of a learning rate at each update: linear from 0, then as SCHEDULES[kind] says."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return SCHEDULES[kind]((step - warmup) / max(1, total - warmup))

    return factor


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": half_cosine,
    "constant": lambda progress: 1.0,
}
"""The factor of the rate by the progress after the warm-up, 0 to 1."""
