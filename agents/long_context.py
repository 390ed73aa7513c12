"""Acting over contexts longer than those of training: in chunks, or with tokens left out.

Both are off unless asked for, and both act as the plain policy does, bit for bit, while an episode
fits: in one chunk, or in the tokens kept. Shapes: B rows, M earlier chunks, D model width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.actor_critic import ActorCritic
from decision_s4.agents.backbones import State
from decision_s4.agents.backbones.base import reset
from decision_s4.agents.backbones.decimation import decimated_features, selects
from decision_s4.agents.feed_forward import FeedForwardPolicy
from decision_s4.agents.heads import DiscreteHead
from decision_s4.agents.policy import Policy
from decision_s4.agents.saved import Saved, agent_of
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError
from decision_s4.envs.timestep import Agent, TimeStep


def long_context_agent(policy: Saved, chunk_steps: int, keep_steps: int) -> Agent:
    """The policy as an agent: in chunks, decimated, or, with both 0, as it is.

    Raises:
        UserError: for both at once, or a policy that cannot act so.
    """
    if chunk_steps and keep_steps:
        raise UserError(
            f"--chunk-steps {chunk_steps} and --keep-steps {keep_steps} exclude each other"
        )
    if chunk_steps:
        return ChunkedAgent(policy, chunk_steps)
    return DecimatedAgent(policy, keep_steps) if keep_steps else agent_of(policy)


class Chunks(NamedTuple):
    """What a chunked agent remembers."""

    time: Tensor
    """(B,) steps since the episode began."""
    current: State
    """After the running chunk alone."""
    ends: State
    """(B, M, …) after each earlier chunk alone."""
    joined: State
    """(B, M, …) after each earlier chunk and then the running one."""
    known: Tensor
    """(B, M) bool: the chunk is one of this episode."""


class ChunkedAgent:
    """Reads an episode in chunks, each from a new state, and each then with the running chunk.

    So no recurrence runs for longer than two chunks, which it was trained for. Of the readings the
    surest speaks, that of least entropy; where actions have none, their mean (Ben-Kish et al.,
    "Overflow Prevention", arXiv 2505.07793). Memory and time a step grow with the chunks.
    """

    def __init__(self, policy: Saved, steps: int):
        self.actor, self.steps = Actor(_recurrent("--chunk-steps", policy)), steps
        self.policy = self.actor.policy
        with torch.inference_mode():  # in which the actor's copy of the weights was made
            self._constants = self.policy.backbone.constants()

    def initial_state(self, batch_size: int) -> Chunks:
        """No chunk yet."""
        current = self.actor.initial_state(batch_size)
        none = _each(lambda leaf: leaf[:, None][:, :0], current)
        time = torch.zeros(batch_size, dtype=torch.long)
        return Chunks(time, current, none, none, torch.zeros(batch_size, 0, dtype=torch.bool))

    @torch.inference_mode()
    def act(
        self, step: TimeStep, state: Chunks, deterministic: bool = True
    ) -> tuple[Tensor, Chunks]:
        """The plain policy's action in an episode's first chunk, then the surest reading's."""
        state = self._begun(step, state)
        action, current = self.actor.act(step, state.current, deterministic)
        joined, apart = state.joined, state.known.any(1)
        if apart.any():
            features, joined = self._read_on(step, state)
            chosen = self._chosen(features, state.known, deterministic)
            action = torch.where(_like(apart, action), chosen, action)
        return action, state._replace(time=state.time + 1, current=current, joined=joined)

    def _begun(self, step: TimeStep, state: Chunks) -> Chunks:
        """Before a step: a new episode knows no chunk; a full chunk joins the earlier ones."""
        time = state.time.masked_fill(step.start, 0)
        state = state._replace(time=time, known=state.known & ~step.start[:, None])
        full = (time > 0) & (time % self.steps == 0)
        if not full.any():
            return state
        new = _each(lambda leaf: leaf[:, None], state.current)
        ends, joined = (_each(_beside, old, new) for old in (state.ends, state.joined))
        return Chunks(
            time,
            reset(state.current, full, self.actor.initial_state(len(time))),
            ends,
            reset(joined, full, ends),
            torch.cat([state.known, full[:, None]], 1),
        )

    def _read_on(self, step: TimeStep, state: Chunks) -> tuple[Tensor, State]:
        """Features (B, M + 1, D) of all readings, the running chunk's own last, and `joined`."""
        count = state.known.shape[1]
        step = tree_map(lambda leaf: leaf.to(self.policy.head.linear.weight.device), step)
        rows = tree_map(lambda leaf: leaf.repeat_interleave(count, 0), step)
        flat = _each(lambda leaf: leaf.flatten(0, 1), state.joined)
        features, after = self.policy.step(rows, flat, self._constants)
        own, _ = self.policy.step(step, state.current, self._constants)
        readings = torch.cat([features.unflatten(0, (-1, count)), own[:, None]], 1)
        return readings, _each(lambda leaf: leaf.unflatten(0, (-1, count)), after)

    def _chosen(self, features: Tensor, known: Tensor, deterministic: bool) -> Tensor:
        """(B, …) the action of the readings that are known; the running chunk's always is."""
        known = torch.nn.functional.pad(known, (0, 1), value=True).to(features.device)
        head = self.policy.head
        if isinstance(head, DiscreteHead):
            unsure = entropy(head, features).masked_fill(~known, torch.inf)
            return head.act(features[torch.arange(len(features)), unsure.argmin(1)], deterministic)
        actions = head.act(features, deterministic)  # (B, M + 1, …)
        weight = _like(known / known.sum(1, keepdim=True), actions)
        return (weight * actions).sum(1)


def entropy(head: DiscreteHead, features: Tensor) -> Tensor:
    """(…) of the actions' distribution, in nats, parts of a MultiDiscrete added."""
    parts = head.linear(features).split(head.counts, -1)
    each = [torch.distributions.Categorical(logits=logits).entropy() for logits in parts]
    return torch.stack(each).sum(0)


class Tokens(NamedTuple):
    """What a decimated agent remembers."""

    time: Tensor
    """(B,) steps since the episode began."""
    tokens: Tensor
    """(B, T, D) all that was read since the first row's episode began."""
    plain: State
    """The plain policy's."""


class DecimatedAgent:
    """Reads the episode anew at each step, all but `keep` tokens left out: see decimation.py."""

    def __init__(self, policy: Saved, keep: int):
        policy = _recurrent("--keep-steps", policy)
        if isinstance(policy, FeedForwardPolicy):
            raise UserError("--keep-steps: this policy keeps nothing of an episode; leave it out")
        if not isinstance(policy, SequencePolicy | ActorCritic) or not selects(policy.backbone):
            raise UserError(
                f"--keep-steps keeps what selective layers open for, and backbone "
                f"'{policy.options.backbone}' selects no time steps of one token each; "
                "use mamba or mamba2, or --chunk-steps"
            )
        self.actor, self.keep = Actor(policy), keep
        self.policy = self.actor.policy
        mine = self.policy
        self._token = mine.embed if isinstance(mine, ActorCritic) else mine.token

    def initial_state(self, batch_size: int) -> Tokens:
        """Nothing read."""
        weight = self.policy.head.linear.weight
        tokens = weight.new_zeros(batch_size, 0, weight.shape[1])
        time = torch.zeros(batch_size, dtype=torch.long)
        return Tokens(time, tokens, self.actor.initial_state(batch_size))

    @torch.inference_mode()
    def act(
        self, step: TimeStep, state: Tokens, deterministic: bool = True
    ) -> tuple[Tensor, Tokens]:
        """The plain policy's action while all steps are kept, then that of the kept ones."""
        time = state.time.masked_fill(step.start, 0) + 1
        action, plain = self.actor.act(step, state.plain, deterministic)
        device = state.tokens.device
        token = self._token(tree_map(lambda leaf: leaf.to(device), step))
        tokens = torch.cat([state.tokens, token[:, None]], 1)[:, -int(time.max()) :]
        long = time > self.keep
        if long.any():
            places = torch.arange(tokens.shape[1] - 1, -1, -1)
            valid = (places < time[:, None]).to(device)
            features = decimated_features(self.policy.backbone, tokens, valid, self.keep)
            chosen = self.policy.head.act(features, deterministic)
            action = torch.where(_like(long, action), chosen, action)
        return action, Tokens(time, tokens, plain)


def _recurrent(flag: str, policy: Saved) -> Policy | ActorCritic:
    """The policy. Raises UserError for one that does not go on from a state."""
    if not isinstance(policy, Policy | ActorCritic):
        raise UserError(f"{flag} is for policies of this project, not those of its baselines")
    if isinstance(policy, Policy) and policy.options.context_mode == "recompute":
        raise UserError(
            f"{flag} is for policies that go on from a state; this one reads its last "
            f"{policy.options.context_steps} steps anew, so its context is never longer"
        )
    return policy


def _each(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` of each leaf that is a tensor."""
    return tree_map(lambda *leaves: leaves[0] if leaves[0] is None else function(*leaves), *trees)


def _beside(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new], 1)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """rows (B, …) with as many dimensions as x."""
    return rows.view(*rows.shape, *[1] * (x.ndim - rows.ndim)).to(x.device)
