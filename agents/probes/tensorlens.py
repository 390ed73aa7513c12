"""TensorLens: the whole policy as one linear operator of its input, row by row.

With every coefficient held at this input (backbones/ops.py) a policy is affine in what it read,

    answer = Σ_t Σ_f row[t, f] · input[t, f] + bias + what the carried-in state adds.

The operator (Atad et al., arXiv 2601.17958) has O(T² D²) elements and is never built: one backward
pass through the held policy is the row of an answer. Shapes: B rows, T steps, F features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.probes.reading import POSITION, Answer, read


@dataclass(frozen=True)
class LensRow:
    """The row of one answer; `contributions` are its products with the input."""

    row: dict[str, Tensor]
    """By modality (B, T, F), and "position" where it is embedded."""
    inputs: dict[str, Tensor]
    bias: Tensor
    """(B,) the answer of the held policy to nothing: what its biases add."""
    state_share: Tensor
    """(B,) what the state carried in adds."""
    answer: Tensor
    """(B,)"""

    def contributions(self) -> dict[str, Tensor]:
        """row × input: with bias and state_share their sum is the answer."""
        return {name: weight * self.inputs[name] for name, weight in self.row.items()}


def tensorlens(policy: Policy, batch: Any, answer: Answer, state: State | None = None) -> LensRow:
    """The row of an answer. Raises UserError for a policy in training mode."""
    with ops.holding() as record:
        reading = read(policy, batch, answer, state)
    row = reading.gradients()
    inputs = {name: x.detach() for name, x in reading.inputs.items()}
    total = reading.answer.detach()
    bias = with_state = _answer_to_nothing(
        policy, batch, answer, _zero(policy, total, state), record
    )
    if state is not None:
        with_state = _answer_to_nothing(policy, batch, answer, state, record)
    return LensRow(row, inputs, bias, with_state - bias, total)


def _zero(policy: Policy, answer: Tensor, state: State | None) -> State | None:
    if policy.options.context_mode == "recompute":
        return None  # it reads whole windows and takes no state
    state = policy.initial_state(len(answer)) if state is None else state
    return tree_map(torch.zeros_like, state)


@torch.no_grad()
def _answer_to_nothing(
    policy: Policy, batch: Any, answer: Answer, state: State, record: ops.Coefficients
) -> Tensor:
    names = (*MODALITIES, POSITION)
    zeros = {f"inputs.{name}": torch.zeros_like for name in names}
    with ops.held(record), ops.taps(zeros):
        features, _ = policy(batch, state)
        return answer(policy, features)
