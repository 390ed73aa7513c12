"""A policy's step as a function of plain tensors: what can be recorded or compiled."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from decision_s4.agents.acting_plan import folded_token
from decision_s4.agents.actor_critic import ActorCritic
from decision_s4.agents.backbones import State
from decision_s4.agents.policy import Policy
from decision_s4.agents.recompute import Recompute
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.tokens import TokenPolicy
from decision_s4.envs.timestep import TimeStep

Acting = Policy | ActorCritic
Act = Callable[[TimeStep, State, bool], tuple[Tensor, State]]
Rows = Callable[[list[Tensor]], list[Tensor]]
Form = tuple[list[Any], list[Any]]  # shapes and types


def own_step(policy: Acting) -> Act:
    """The policy's differentiable step."""
    constants, device = policy.backbone.constants(), policy.head.linear.weight.device

    def act(step: TimeStep, state: State, deterministic: bool) -> tuple[Tensor, State]:
        if device.type != "cpu":
            step = tree_map(lambda leaf: leaf.to(device), step)
        features, state = policy.step(step, state, constants)
        return policy.head.act(features, deterministic), state

    return act


def folded_step(policy: SequencePolicy) -> Act:
    """The same on the CPU in fewer operations: embeddings as one, no reset where none is due."""
    constants, token = policy.backbone.constants(), folded_token(policy)

    def act(step: TimeStep, state: State, deterministic: bool) -> tuple[Tensor, State]:
        start = step.start if step.start.any() else None
        features, state = policy.backbone.step(token(step), state, start, constants)
        return policy.head.act(features, deterministic), state

    return act


def can_flatten(policy: Acting) -> bool:
    """Whether no number decides what its step does, only what comes of it.

    Recomputing packs what it reads, three tokens ask how long an episode is, dropout is random.
    """
    return not (policy.training or isinstance(policy, Recompute | TokenPolicy))


class FlatStep(nn.Module):
    """Leaves of a time step, then of a state -> [features, likeliest action, *the new state's].

    Args:
        policy: one that `can_flatten`; it is kept.
        step, state: of the form that all others will have.
    """

    def __init__(self, policy: Acting, step: TimeStep, state: State):
        super().__init__()
        self.policy, self.step, self.state = policy, step, state
        leaves, self.form = tree_flatten(policy.backbone.constants())
        for i, leaf in enumerate(leaves):
            self.register_buffer(f"constant{i}", leaf)  # None too
        self.count = len(leaves)

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        rest = iter(given)
        step, state = unflattened(self.step, rest), unflattened(self.state, rest)
        constants = [getattr(self, f"constant{i}") for i in range(self.count)]
        features, state = self.policy.step(step, state, tree_unflatten(constants, self.form))
        found = features, self.policy.head.act(features, True), *flattened(state)
        return [x.contiguous() for x in found]


class FlatAct:
    """Acts by the policy's FlatStep, which `prepare` makes a fast function of rows.

    Args:
        policy: one that `can_flatten`.
        prepare: of the flat step: what runs it. It may raise RuntimeError, also at its first call.
        say: takes one line where then the policy's own step acts in its place; None: it may not.
    """

    def __init__(
        self, policy: Acting, prepare: Callable[[FlatStep], Rows], say: Callable[[str], None] | None
    ):
        self.policy, self.prepare, self.say = policy, prepare, say
        self.own, self.device = own_step(policy), policy.head.linear.weight.device
        self.rows: Rows | None = None
        self.forms: list[Form] = []  # met and taken, one for each number of rows

    def __call__(self, step: TimeStep, state: State, deterministic: bool) -> tuple[Tensor, State]:
        if self.device.type != "cpu":
            step = tree_map(lambda leaf: leaf.to(self.device), step)
        given = flattened(step, state)
        if not self.forms:
            self._begin(step, state, given)
        if self.rows is None or not self._takes(given):  # another's state: its own step says so
            return self.own(step, state, deterministic)
        features, action, *after = self.rows(given)
        if not deterministic:
            action = self.policy.head.act(features, False)
        return action, unflattened(state, iter(after))

    def _begin(self, step: TimeStep, state: State, given: list[Tensor]) -> None:
        self.own(step, state, True)  # raises for what no policy takes
        self.forms.append(_form(given))
        rows = self.prepare(FlatStep(self.policy, step, state))
        try:
            rows(given)
            self.rows = rows
        except (RuntimeError, OSError) as error:
            if self.say is None:
                raise
            reason = str(error).strip().partition("\n")[0]
            self.say(f"the policy acts by its own step, operation by operation: {reason}")

    def _takes(self, given: list[Any]) -> bool:
        """Whether they differ from the first that came in the number of rows alone."""
        shapes, types = form = _form(given)
        if form in self.forms:
            return True
        (first, wanted), rows = self.forms[0], len(given[0])
        alike = types == wanted and shapes == [(rows, *shape[1:]) for shape in first]
        if alike:
            self.forms.append(form)
        return alike


def _form(leaves: list[Any]) -> Form:
    return [getattr(x, "shape", None) for x in leaves], [getattr(x, "dtype", None) for x in leaves]


def flattened(*trees: Any) -> list[Tensor]:
    """The tensors of trees of tuples and dicts, these by key: torch's own takes longer."""
    leaves: list[Tensor] = []
    for tree in trees:
        _collect(tree, leaves)
    return leaves


def _collect(tree: Any, leaves: list[Any]) -> None:
    if isinstance(tree, dict):
        tree = [tree[key] for key in sorted(tree)]
    elif not isinstance(tree, tuple | list):
        leaves.append(tree)
        return
    for part in tree:
        _collect(part, leaves)


def unflattened(like: Any, leaves: Iterator[Tensor]) -> Any:
    """The next leaves as a tree of the same form as `like`."""
    if isinstance(like, Tensor):
        return next(leaves)
    if isinstance(like, dict):
        return {key: unflattened(part, leaves) for key, part in sorted(like.items())}
    parts = [unflattened(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
