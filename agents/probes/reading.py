"""A policy's answer as a function of all that it read, so that autograd can say what it hung on.

Shapes: B rows, T steps, F features of a modality. Inputs are features: scaled returns-to-go,
standardised observations, previous actions, and the position's embedding where there is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.tokens import TokenPolicy
from decision_s4.envs.errors import UserError

POSITION = "position"
Answer = Callable[[Policy, Tensor], Tensor]
"""What is explained: (policy, its features (B, T, D)) -> (B,)."""


@dataclass(frozen=True)
class Reading:
    """One run of a policy."""

    answer: Tensor
    """(B,)"""
    inputs: dict[str, Tensor]
    """By modality (B, T, F), and "position" (B, T, tokens, D) of policies that embed it; leaves."""

    def gradients(self) -> dict[str, Tensor]:
        """Of the answer, in each input; zero where it does not depend on one."""
        found = torch.autograd.grad(
            self.answer.sum(), list(self.inputs.values()), allow_unused=True, retain_graph=True
        )
        return {
            name: torch.zeros_like(x) if gradient is None else gradient
            for (name, x), gradient in zip(self.inputs.items(), found, strict=True)
        }


def read(policy: Policy, batch: Any, answer: Answer, state: State | None = None) -> Reading:
    """Run a policy in evaluation mode, under the rules that are open, with leaves for inputs.

    Raises:
        UserError: for a policy in training mode, whose dropout no map would outlive.
    """
    if policy.training:
        raise UserError("the policy is in training mode; call policy.eval() before a probe")
    inputs: dict[str, Tensor] = {}

    def leaf(name: str) -> ops.Handler:
        def replace(x: Tensor) -> Tensor:
            inputs[name] = x.detach().requires_grad_()
            return inputs[name]

        return replace

    names = (*MODALITIES, POSITION)
    with torch.enable_grad(), ops.taps({f"inputs.{name}": leaf(name) for name in names}):
        features, _ = policy(batch, state)
        return Reading(answer(policy, features), inputs)


def action_at(step: int, dimension: int = 0) -> Answer:
    """The action's dimension, or the logit of a discrete action, at one step."""

    def answer(policy: Policy, features: Tensor) -> Tensor:
        head, now = policy.head, features[:, step]
        out = head.act(now).flatten(1) if isinstance(head, BoxHead) else head.linear(now)
        if not 0 <= dimension < out.shape[1]:
            raise UserError(
                f"action dimension {dimension} is not there; they are 0 to {out.shape[1] - 1}"
            )
        return out[:, dimension]

    return answer


def values_at(run: Callable[[], object], places: Sequence[str]) -> dict[str, Tensor]:
    """What is tapped at `places`, such as "blocks.0.input", while `run()` runs a policy."""
    found: dict[str, Tensor] = {}

    def keep(place: str) -> ops.Handler:
        def handle(x: Tensor) -> None:
            found[place] = x

        return handle

    with torch.no_grad(), ops.taps({place: keep(place) for place in places}):
        run()
    return found


def residual_places(policy: Policy) -> list[str]:
    """The taps of what enters each layer, and of what the head reads."""
    count = len(layered(policy).backbone.blocks)
    return [*(f"blocks.{i}.input" for i in range(count)), "features"]


def layered(policy: Policy) -> SequencePolicy | TokenPolicy:
    """The policy, of which a probe reads the layers. Raises UserError for one that has none."""
    if isinstance(policy, SequencePolicy | TokenPolicy):
        return policy
    raise UserError(f"a policy of --tokens {policy.options.tokens} has no layers over time")
