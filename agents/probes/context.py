"""One query to a policy: what it had read, as features, and what it answers to other features.

The policy is a function of features here: `Context.answer` runs it with any values in place of what
it read. What lies before the window of a query stays in the recurrent state, as it was.
Shapes: N variants, W steps of the window, F features of a step, K baselines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import MODALITIES, Policy
from decision_s4.agents.probes.base import Attribution, Target
from decision_s4.agents.probes.recordings import Recording
from decision_s4.envs.errors import UserError
from decision_s4.envs.spaces import map_tree

WINDOW = 64
"""Steps that a map shows; what lies before them acts through the state."""
LARGEST = 1 << 22
"""Numbers that the variants of one pass may hold; more of them go in several passes."""


@dataclass(frozen=True)
class Context:
    """The last W steps that a policy read before it answered."""

    policy: Policy
    target: Target
    step: int
    first: int
    """Number of the window's first step."""
    batch: Any
    """What the policy reads: (1, W, …)."""
    state: State | None
    """Before the window, one row."""
    features: Tensor
    """(W, F)"""
    others: Tensor
    """(K, W, F) the same steps of other episodes."""
    recording: Recording
    """The whole episode."""
    decisions: Mapping[str, Tensor] = field(default_factory=dict)
    """By tap, what layers decide outright (which steps attention takes in), where it is held."""

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Each modality's place among the features."""
        return {part.modality: part.features for part in self.policy.token_map(1)}

    def answer(self, features: Tensor) -> Tensor:
        """(N, W, F) -> (N,) the target at the query's step; differentiable."""
        rows = max(1, LARGEST // (features[0].numel() * self.policy.options.d_model))
        return torch.cat([self._answer(part) for part in features.split(rows)])

    def _answer(self, features: Tensor) -> Tensor:
        count = len(features)
        state = self.state
        if state is not None:
            state = tree_map(lambda leaf: leaf.expand(count, *leaf.shape[1:]), state)
        handlers = {
            f"inputs.{name}": lambda _, place=place: features[..., place]
            for name, place in self.slices.items()
        }
        for name, made in self.decisions.items():
            handlers[name] = lambda _, made=made: made.expand(count, *made.shape[1:])
        with ops.taps(handlers):
            y, _ = self.policy(widened(self.batch, count), state)
        return self.read(self.policy, y)

    def read(self, policy: Policy, features: Tensor) -> Tensor:
        """The target at the window's last step, of the policy's features (N, W, D)."""
        return self.target.read(policy, features[:, -1])

    def joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(W, F) of one tensor (1, W, …) a modality."""
        return torch.cat([parts[name][0] for name in MODALITIES], -1)

    def with_state(self, state: State) -> "Context":
        """The same query with another past before the window."""
        return replace(self, state=state)

    def with_decisions_held(self) -> "Context":
        """The same query to a policy that decides as it did here, whatever it reads: smooth where
        decisions would jump."""
        made: dict[str, Tensor] = {}
        layers = getattr(self.policy.backbone, "blocks", ())
        names = [f"blocks.{i}.decisions" for i in range(len(layers))]
        with torch.no_grad(), ops.taps({name: partial(made.__setitem__, name) for name in names}):
            self.answer(self.features[None])
        return replace(self, decisions=made)

    def tail(self, steps: int) -> "Context":
        """The last `steps` of the window alone, what is before them in the state; the whole window
        of a policy that recomputes."""
        cut = len(self.features) - steps
        if cut == 0 or _recomputes(self.policy):
            return self
        before, batch = (
            SimpleNamespace(**map_tree(lambda leaf, part=part: leaf[:, part], vars(self.batch)))
            for part in (slice(cut), slice(cut, None))
        )
        with torch.no_grad():
            _, state = self.policy(before, self.state)
        return replace(
            self,
            first=self.first + cut,
            batch=batch,
            state=state,
            features=self.features[cut:],
            others=self.others[:, cut:],
        )

    def to_policy(self, policy: Policy) -> "Context":
        """The same query to another policy of the same inputs, from the episode's beginning."""
        return replace(self, policy=policy, state=_state_before(policy, self.recording, self.first))

    def attribution(self, method: str, values: Tensor, **more: Any) -> Attribution:
        """An answer to this query; `more` are Attribution's other fields."""
        return Attribution(
            method,
            self.target.name,
            self.step,
            self.first,
            values.detach(),
            self.prediction,
            **more,
        )

    @cached_property
    def prediction(self) -> float:
        """What the policy answered."""
        with torch.no_grad():
            return self.answer(self.features[None]).item()

    def gradient(self, features: Tensor) -> Tensor:
        """(N, W, F) of each variant's answer in its features."""
        with torch.enable_grad():
            x = features.detach().requires_grad_()
            return torch.autograd.grad(self.answer(x).sum(), x)[0]


def widened(batch: Any, rows: int) -> Any:
    """A batch of one row, `rows` times, without a copy."""
    return SimpleNamespace(**map_tree(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), vars(batch)))


def make_context(
    policy: Policy,
    recording: Recording,
    others: Sequence[Recording],
    step: int,
    target: Target,
    window: int = WINDOW,
) -> Context:
    """The query at a step of a recorded episode, beside the same steps of `others`.

    Raises:
        UserError: for a step that is not there, or no other episode to compare with.
    """
    if not 0 <= step < recording.steps:
        raise UserError(f"step {step} is not there; steps are 0 to {recording.steps - 1}")
    if not others:
        raise UserError("there is no other episode to compare with; record two or more")
    recomputes = _recomputes(policy)
    first = max(0, step + 1 - (policy.options.context_steps if recomputes else window))
    batch = recording.batch(first, step + 1, begins=recomputes)
    beside = torch.stack([other.stretch(first, step + 1) for other in others])
    return Context(
        policy,
        target,
        step,
        first,
        batch,
        _state_before(policy, recording, first),
        recording.stretch(first, step + 1),
        beside,
        recording,
    )


def _recomputes(policy: Policy) -> bool:
    return policy.options.context_mode == "recompute"


@torch.no_grad()
def _state_before(policy: Policy, recording: Recording, first: int) -> State | None:
    if _recomputes(policy):
        return None
    if first == 0:
        return policy.initial_state(1)
    return policy(recording.batch(0, first))[1]
