"""What an input is worth: the return where it is masked in every step of the loop.

A masked feature holds what other recorded episodes held at the same time step, so that the policy
acts on a plausible past that is not its own. All features and seeds play in one lockstep batch.
Shapes: B rows, F features, K recorded episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Table
from decision_s4.agents.probes.faithfulness import interval
from decision_s4.agents.probes.recordings import Recording
from decision_s4.envs.rollout import rollout
from decision_s4.envs.statistics import bootstrap_interval
from decision_s4.envs.task import Task
from decision_s4.envs.timestep import TimeStep

TAPPED_EPISODES, TAPPED_SEED = 4, 500
SPOKEN_OF = 0.02
"""Of the return: a loss that is less in the lower end of its interval is not told in words."""


class MaskedState(NamedTuple):
    """Where a masked policy stands; rows leave it as they leave the batch."""

    time: Tensor
    """(B,) steps taken."""
    masked: Tensor
    """(B, F) bool."""
    source: Tensor
    """(B,) which recorded episode fills in."""
    memory: State


@dataclass(frozen=True)
class MaskedAgent:
    """A policy some of whose features are another episode's, as an agent of a rollout."""

    policy: Policy
    masked: Tensor
    """(B, F) bool, by row."""
    fill: Tensor
    """(K, T, F) features of recorded episodes."""

    def initial_state(self, batch_size: int) -> MaskedState:
        """Row i is filled from recorded episode i mod K."""
        rows = torch.arange(batch_size)
        memory = self.policy.initial_state(batch_size)
        return MaskedState(torch.zeros_like(rows), self.masked, rows % len(self.fill), memory)

    @torch.no_grad()
    def act(
        self, step: TimeStep, state: MaskedState, deterministic: bool = True
    ) -> tuple[Tensor, MaskedState]:
        """The policy's action on the inputs that are left to it."""

        def mask(place: slice) -> ops.Handler:
            def handle(x: Tensor) -> Tensor:  # (B, F), or (B, K, F) of a policy that recomputes
                steps = x[:, None].flatten(1, -2).shape[1]
                instead = self._instead(state, steps)[..., place]
                return torch.where(state.masked[:, None, place], instead, x.view_as(instead)).view(
                    x.shape
                )

            return handle

        parts = self.policy.token_map(1)
        with ops.taps({f"inputs.{part.modality}": mask(part.features) for part in parts}):
            y, memory = self.policy.step(step, state.memory)
        action = self.policy.head.act(y, deterministic)
        return action, state._replace(time=state.time + 1, memory=memory)

    def _instead(self, state: MaskedState, steps: int) -> Tensor:
        """(B, steps, F) what the recorded episodes held at the last `steps` steps."""
        time = state.time[:, None] - torch.arange(steps - 1, -1, -1)
        time = time.clamp(0, self.fill.shape[1] - 1)
        return self.fill[state.source[:, None], time]


@dataclass(frozen=True)
class Worth:
    """Returns by masked feature, on the same seeds."""

    names: Sequence[str]
    """What was masked; the first is nothing."""
    returns: np.ndarray
    """(1 + F, episodes)"""

    @property
    def losses(self) -> np.ndarray:
        """(F,) mean return lost by masking each feature."""
        return (self.returns[:1] - self.returns[1:]).mean(1)

    def summary(self, asked: str = "", most: int = 3) -> str:
        """In words, the dearest features whose loss is neither chance nor next to nothing.

        `asked` says for what return, as ", asked for 3600".
        """
        loss = self.returns[0] - self.returns[1:]  # (F, N)
        least = SPOKEN_OF * abs(self.returns[0].mean())
        dear = [i for i in np.argsort(-self.losses) if bootstrap_interval(loss[i])[0] > least]
        if not dear:
            return "No single input's absence costs it a return that these episodes can show."
        whole, means = self.returns[0].mean(), self.returns[1:].mean(1)
        rest = ", ".join(f"{self.names[1 + i]} ({means[i]:.0f})" for i in dear[1:most])
        first = (
            f"without {self.names[1 + dear[0]]} it returns {means[dear[0]]:.0f}, not {whole:.0f}"
        )
        return f"What it needs most{asked}: {first}" + (f"; then {rest}." if rest else ".")

    def table(self) -> Table:
        """The dearest feature first."""
        rows = []
        for i in [0, *(1 + np.argsort(-self.losses))]:
            lost = self.returns[0] - self.returns[i]
            cells = [
                interval((values.mean(), *bootstrap_interval(values)), digits=0)
                for values in (self.returns[i], lost)
            ]
            rows.append([self.names[i], cells[0], "" if i == 0 else cells[1]])
        count = self.returns.shape[1]
        return Table(
            f"Return with one input masked in the loop, {count} episodes each",
            ["masked", "return", "lost"],
            rows,
        )


def worth_of_inputs(
    policy: Policy,
    task: Task,
    recordings: Sequence[Recording],
    names: Sequence[str],
    episodes: int,
    seed: int,
    max_steps: int = 1000,
    **options: Any,
) -> Worth:
    """Play with nothing masked, and with each feature masked, towards the first target return."""
    width = len(names)
    masked = torch.cat([torch.zeros(1, width), torch.eye(width)]).bool()
    longest = max(recording.steps for recording in recordings)
    fill = torch.stack([recording.stretch(0, longest) for recording in recordings])
    agent = MaskedAgent(policy, masked.repeat_interleave(episodes, 0), fill)
    seeds = [seed + i for _ in masked for i in range(episodes)]
    targets = [task.aims[0]] * len(seeds)
    env_id, kwargs = task.environment, task.env_kwargs
    played = rollout(agent, env_id, targets, seeds, kwargs, max_steps, **options)
    return Worth(["nothing", *names], played.returns.reshape(1 + width, episodes))


def tapped_returns(
    policy: Policy, task: Task, taps: Mapping[str, Mapping[str, ops.Handler]], max_steps: int = 1000
) -> Table:
    """Returns with each of `taps` (by name, handlers by place) open in all steps of the loop."""
    seeds = [TAPPED_SEED + i for i in range(TAPPED_EPISODES)]
    targets = [task.aims[0]] * TAPPED_EPISODES
    rows, actor, env_id = [], Actor(policy), task.environment
    for name, handlers in taps.items():
        with ops.taps(handlers):
            played = rollout(actor, env_id, targets, seeds, task.env_kwargs, max_steps)
        values, lengths = played.returns, played.lengths
        cell = interval((values.mean(), *bootstrap_interval(values)), digits=0)
        rows.append([name, cell, f"{lengths.mean():.0f}"])
    title = f"Asked for {targets[0]:g}, {TAPPED_EPISODES} episodes each on the same seeds"
    return Table(title, ["changed in the activations", "return", "steps"], rows)
