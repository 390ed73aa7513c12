"""Does what a read-out finds also act? The policy is pushed along it, and along random directions.

A ridge read-out ŷ = w · x of progress or of the return still to come says along which direction
activations rise with it. Added to x, far enough that it reads one standard deviation more, it
should act more than random directions of the same length, were it used (after Eisenstadt et al.,
arXiv 2506.07240). Added before the middle layer, or to the recurrent state, where it is more than a
constant of the action. Shapes: S steps, D features or numbers of a state.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.backbones import State, ops
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Findings, PolicyProbe, Row, Table
from decision_s4.agents.probes.closed_loop import tapped_returns
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.layer_probes import check_layers
from decision_s4.agents.probes.linear import (
    LEAST_EPISODES,
    PROGRESS_LABELS,
    Readout,
    labels_of,
    r_squared,
    recordings_of,
)
from decision_s4.agents.probes.reading import residual_places, values_at
from decision_s4.agents.probes.recordings import Recording
from decision_s4.envs.task import Task

DRAWS = 16
"""Random directions."""
STRIDE = 20
"""Steps between the recurrent states that a read-out is fitted to."""
COLUMNS = ("along", "where", "R² of the read-out", "its change", "random ones'", "beats of them")

Pushed = Callable[[Context, np.ndarray], float]
"""How far the answer of a query moves whose activations have a vector (D,) added."""


class Steering(PolicyProbe):
    """In the middle of the layers and in the recurrent state; in the loop, if there is a task."""

    name = "steering"
    question = "does pushing along what a read-out found act, and more than a random push?"

    def check(self, policy: Policy) -> None:
        check_layers(self.name, policy)

    def examine(self, contexts: Sequence[Context], task: Task | None = None) -> Findings:
        """The queries' answers pushed, then whole episodes."""
        policy, recordings = contexts[0].policy, recordings_of(contexts)
        if len(recordings) < LEAST_EPISODES:
            note = f"{len(recordings)} episodes do not suffice; {LEAST_EPISODES} do"
            return Findings(self.name, notes=[note])
        places = residual_places(policy)
        middle = places[(len(places) - 1) // 2]
        inside = [_hidden(policy, recording, middle) for recording in recordings]
        every = [np.arange(recording.steps) for recording in recordings]
        rows = _rows(middle, contexts, inside, every, lambda c, v: _pushed_inside(c, middle, v))
        if contexts[0].state is not None:
            states, times = zip(*(states_of(policy, one) for one in recordings), strict=True)
            rows += _rows("recurrent state", contexts, states, times, _pushed_state)
        title = f"Mean |change of the answer| by one push, {len(contexts)} queries"
        tables = [Table(title, COLUMNS, rows)]
        if task is not None:
            taps = _pushes_in_loop(middle, inside, labels_of(recordings))
            tables.append(tapped_returns(policy, task, taps))
        note = f"Random: mean of {DRAWS} directions as long in standard deviations of each number."
        return Findings(self.name, tables, notes=[note])


def _rows(
    where: str,
    contexts: Sequence[Context],
    inputs: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    pushed: Pushed,
) -> list[Row]:
    """A row a label, of read-outs of `inputs` (S, D) taken at `times` of each episode."""
    labels = labels_of(recordings_of(contexts))
    rows: list[Row] = []
    for name in PROGRESS_LABELS:
        chosen = [label[time] for label, time in zip(labels[name], times, strict=True)]
        readout = Readout.fit(np.concatenate(inputs), np.concatenate(chosen))
        own = mean_change(contexts, readout.push(), pushed)
        others = [mean_change(contexts, push, pushed) for push in random_pushes(readout)]
        beaten = float(np.mean([own > other for other in others]))
        score = r_squared(inputs, chosen)
        rows.append([name, where, score, own, float(np.mean(others)), f"{beaten:.0%}"])
    return rows


def mean_change(contexts: Sequence[Context], push: np.ndarray, pushed: Pushed) -> float:
    """Mean |answer with the push − answer|."""
    return float(np.mean([abs(pushed(context, push)) for context in contexts]))


def random_pushes(readout: Readout, count: int = DRAWS) -> list[np.ndarray]:
    """(D,) each, as long as the read-out's own."""
    generator = np.random.default_rng(0)
    return [readout.push(generator.normal(size=readout.weight.shape)) for _ in range(count)]


def _hidden(policy: Policy, recording: Recording, place: str) -> np.ndarray:
    """(S, D) at each step: the mean of its tokens."""
    found = values_at(lambda: policy(recording.batch(0, recording.steps)), [place])[place]
    return found[0].view(recording.steps, -1, found.shape[-1]).mean(1).double().numpy()


@torch.no_grad()
def states_of(policy: Policy, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Recurrent states (S, D) before the steps `times` (S,), every STRIDE or, of a short episode,
    four times in it."""
    stride = max(1, min(STRIDE, recording.steps // 4))
    times = np.arange(stride, recording.steps, stride)
    state, found = policy.initial_state(1), []
    for time in times.tolist():
        _, state = policy(recording.batch(time - stride, time), state)
        found.append(state_numbers(state))
    return torch.stack(found).double().numpy(), times


def state_numbers(state: State) -> Tensor:
    """(D,) of a state of one row, its counters left out."""
    return torch.cat([_numbers(leaf).flatten() for leaf in tree_leaves(state) if _moves(leaf)])


def _moves(leaf: Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _numbers(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf) if leaf.is_complex() else leaf


def moved_state(state: State, push: np.ndarray) -> State:
    """The state of one row with a vector (D,) added to its `state_numbers`."""
    rest = torch.as_tensor(push)

    def move(leaf: Tensor) -> Tensor:
        nonlocal rest
        if not _moves(leaf):
            return leaf
        numbers = _numbers(leaf)
        part, rest = rest[: numbers.numel()], rest[numbers.numel() :]
        moved = numbers + part.view_as(numbers).to(numbers)
        return torch.view_as_complex(moved) if leaf.is_complex() else moved

    return tree_map(move, state)


@torch.no_grad()
def _pushed_inside(context: Context, place: str, push: np.ndarray) -> float:
    plain = context.prediction
    with ops.taps({place: _adding(push)}):
        return context.answer(context.features[None]).item() - plain


@torch.no_grad()
def _pushed_state(context: Context, push: np.ndarray) -> float:
    """The state before the query's own step."""
    last = context.tail(1)
    moved = last.with_state(moved_state(last.state, push))
    return moved.answer(last.features[None]).item() - last.prediction


def _adding(push: np.ndarray) -> ops.Handler:
    return lambda x: x + torch.as_tensor(push).to(x)


def _pushes_in_loop(
    place: str, inputs: Sequence[np.ndarray], labels: dict[str, list[np.ndarray]]
) -> dict[str, dict[str, ops.Handler]]:
    """Both ways along each read-out, and along two random directions."""
    taps: dict[str, dict[str, ops.Handler]] = {"nothing": {}}
    for name in PROGRESS_LABELS:
        readout = Readout.fit(np.concatenate(inputs), np.concatenate(labels[name]))
        pushes = {"+ ": readout.push(), "− ": -readout.push()}
        pushes |= {f"random {i}, as long as ": v for i, v in enumerate(random_pushes(readout, 2))}
        taps |= {f"{way}{name}": {place: _adding(push)} for way, push in pushes.items()}
    return taps
