"""Layer-wise relevance propagation as gradient × input under rules, and relevance patching.

Each rule makes the marked parts of a network (see backbones/ops.py) linear at this input, so that
gradient × input through it is the rule's relevance, and what the inputs do not get, biases absorb:

    identity   f(x) = x · (f(x)/x): activations          Ali et al., arXiv 2202.07304
    half       R(a) = R(b) = R(a ⊙ b) / 2: gates         Jafari et al., MambaLRP, arXiv 2406.07592
    held       norms' scales, time steps, decays, read-outs, attention weights, gates' sigmoids
    attnlrp    a product of n factors gives 1 / n each   Achtibat et al., AttnLRP, arXiv 2402.05602

Known blind spot: where coefficients are held, what acts by selection alone gets no relevance, and
a return-to-go may be such; see the rules "selection", and occlusion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.reading import POSITION, Answer, read, values_at


@dataclass(frozen=True)
class Relevance:
    """Where an answer came from; inputs, position and what is absorbed add up to it."""

    inputs: dict[str, Tensor]
    """By modality, (B, T, F)."""
    position: Tensor | None
    """(B, T) of the steps' embedded positions, a sink of their own (Bakish et al., arXiv
    2506.02138); None where the policy embeds none."""
    answer: Tensor
    """(B,)"""

    @property
    def absorbed(self) -> Tensor:
        """(B,) what biases and a state carried in keep: 0 without them, under "lrp"."""
        kept = self.answer - sum(part.flatten(1).sum(1) for part in self.inputs.values())
        return kept if self.position is None else kept - self.position.sum(1)

    @property
    def conservation_gap(self) -> Tensor:
        """(B,) |absorbed| as a share of all relevance that was moved, in [0, 1]."""
        moved = torch.stack([x.flatten(1).abs().sum(1) for x in self.inputs.values()]).sum(0)
        if self.position is not None:
            moved = moved + self.position.abs().sum(1)
        absorbed = self.absorbed.abs()
        return absorbed / (moved + absorbed).clamp(min=torch.finfo(moved.dtype).tiny)


def relevance(
    policy: Policy,
    batch: Any,
    answer: Answer,
    rules: str | ops.Rules = "lrp",
    state: State | None = None,
) -> Relevance:
    """Relevance of all inputs for an answer.

    Args:
        policy: in evaluation mode.
        batch: what the policy reads.
        answer: what is explained, such as `action_at(step, dimension)`.
        rules: "lrp", "attnlrp", "selection", "frozen" (no half rule), or made for the purpose.
        state: carried in; None for a new one.

    Raises:
        UserError: for unknown rules, or a policy in training mode.
    """
    with ops.rules(rules):
        reading = read(policy, batch, answer, state)
    gradients = reading.gradients()
    found = {name: (x * gradients[name]).detach() for name, x in reading.inputs.items()}
    position = found.pop(POSITION, None)
    position = None if position is None else position.flatten(2).sum(2)
    return Relevance(found, position, reading.answer.detach())


def relevance_patching(
    policy: Policy,
    clean: Any,
    corrupt: Any,
    answer: Answer,
    places: Sequence[str],
    rules: str | ops.Rules = "lrp",
) -> dict[str, Tensor]:
    """What patching each place with its value of another run would do to the answer, at once.

        RelP(place, t) = (x_corrupt − x_clean) · ∂answer/∂x under the rules, at the clean run

    Jafari et al., "RelP", arXiv 2508.21258. With the rules "off" it is attribution patching.

    Args:
        clean, corrupt: two batches of one shape.
        places: names of taps, such as "blocks.0.input".

    Returns:
        (B, T) by place: the answer's estimated change, T the place's steps (tokens).
    """
    return estimated_effects(
        lambda: answer(policy, policy(clean)[0]), lambda: policy(corrupt), places, rules
    )


def estimated_effects(
    clean: Callable[[], Tensor],
    corrupt: Callable[[], object],
    places: Sequence[str],
    rules: str | ops.Rules = "lrp",
) -> dict[str, Tensor]:
    """`relevance_patching` of two runs: `clean()` runs the policy and answers (B,)."""
    there = values_at(corrupt, places)
    here: dict[str, Tensor] = {}
    with ops.rules(rules), ops.taps({p: _leaf(here, p) for p in places}), torch.enable_grad():
        total = clean().sum()
    gradients = torch.autograd.grad(total, list(here.values()), allow_unused=True)
    return {
        place: ((there[place] - x) * (0 if gradient is None else gradient)).detach().sum(-1)
        for (place, x), gradient in zip(here.items(), gradients, strict=True)
    }


def _leaf(found: dict[str, Tensor], place: str) -> ops.Handler:
    """Keeps the tensor, and adds a zero to it whose gradient is that of all its uses."""

    def handle(x: Tensor) -> Tensor:
        found[place] = x + torch.zeros_like(x, requires_grad=True)
        return found[place]

    return handle
