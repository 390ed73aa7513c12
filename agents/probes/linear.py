"""What a policy's memory knows: linear read-outs of its last features, beside their controls.

A read-out is ridge regression on whole episodes, judged on other episodes. R² counts only above
what the step's number alone, the present input alone, and shuffled labels tell
(Hewitt and Liang, arXiv 1909.03368). Shapes: S steps of all episodes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Findings, PolicyProbe, Row, Table
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.recordings import Recording
from decision_s4.envs.task import Task

RIDGE = 1e-2
"""Penalty, in units of the standardised regressors' mean square."""
LEAST_EPISODES = 3
LAGS = (1, 4, 16)
MEMORY = "memory: R²"
PROGRESS_LABELS = ("progress through the episode", "return still to come")


class LinearProbe(PolicyProbe):
    """R² of what the features know of progress, remaining return and past observations."""

    name = "linear-probe"
    question = "what does the memory know that the present input does not tell?"

    def examine(self, contexts: Sequence[Context], task: Task | None = None) -> Findings:
        """Half of the episodes to fit, the others to judge."""
        recordings = recordings_of(contexts)
        if len(recordings) < LEAST_EPISODES:
            note = f"{len(recordings)} episodes do not suffice; {LEAST_EPISODES} do"
            return Findings(self.name, notes=[note])
        inputs = _inputs(contexts[0].policy, recordings)
        rows: list[Row] = []
        scalars: dict[str, float] = {}
        for name, labels in labels_of(recordings).items():
            scores = [r_squared(x, labels) for x in inputs.values()]
            chance = r_squared(inputs[MEMORY], _shuffled(labels))
            rows.append([name, *scores, chance])
            scalars[f"linear-probe/{name}"] = scores[0]
        columns = ["what", *inputs, "shuffled labels"]
        title = f"Fitted on half of {len(recordings)} episodes, judged on the others"
        note = "1: known exactly; 0 or less: no better than the mean. Controls beside it."
        return Findings(
            self.name, tables=[Table(title, columns, rows)], scalars=scalars, notes=[note]
        )


def _inputs(policy: Policy, recordings: Sequence[Recording]) -> dict[str, list[np.ndarray]]:
    """What is read of each episode, (T, …): the memory first, then what it is compared with."""
    hidden = [_hidden(policy, recording) for recording in recordings]
    present = [recording.features.double().numpy() for recording in recordings]
    return {
        MEMORY: hidden,
        "memory and present input": [
            np.concatenate(pair, 1) for pair in zip(hidden, present, strict=True)
        ],
        "present input alone": present,
        "time alone": [_clock(recording.steps) for recording in recordings],
    }


def recordings_of(contexts: Sequence[Context]) -> list[Recording]:
    """The episodes that the contexts are of, each once."""
    return list({id(c.recording): c.recording for c in contexts}.values())


@torch.no_grad()
def _hidden(policy: Policy, recording: Recording) -> np.ndarray:
    """(T, D) what the head reads."""
    return policy(recording.batch(0, recording.steps))[0][0].double().numpy()


def read_directions(policy: Policy, recordings: Sequence[Recording]) -> dict[str, np.ndarray]:
    """(D,) of what the head reads: along which each of PROGRESS_LABELS rises, by its read-out."""
    hidden = np.concatenate([_hidden(policy, recording) for recording in recordings])
    labels = labels_of(recordings)
    fits = {name: Readout.fit(hidden, np.concatenate(labels[name])) for name in PROGRESS_LABELS}
    return {name: fit.weight / fit.std for name, fit in fits.items()}


def _clock(steps: int) -> np.ndarray:
    """(T, 4) the step's number and powers of it."""
    time = np.arange(steps)[:, None] / 1000
    return np.concatenate([time, time**2, time**3, np.sqrt(time)], 1)


def labels_of(recordings: Sequence[Recording]) -> dict[str, list[np.ndarray]]:
    """By what is asked, one (T,) an episode; past inputs are nan before there are any."""
    progress = [np.arange(r.steps) / r.steps for r in recordings]
    found = dict(zip(PROGRESS_LABELS, (progress, [_to_come(r) for r in recordings]), strict=True))
    for lag in LAGS:
        found[f"first observation, {lag} steps ago"] = [_ago(r, lag) for r in recordings]
    return found


def _to_come(recording: Recording) -> np.ndarray:
    return recording.reward.double().flip(0).cumsum(0).flip(0).numpy()


def _ago(recording: Recording, lag: int) -> np.ndarray:
    values = recording.features[:, 1].double().numpy()
    return np.concatenate([np.full(min(lag, len(values)), np.nan), values[:-lag]])[: len(values)]


def _shuffled(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.permutation(values) for values in labels]


def r_squared(inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Of a ridge regression fitted on every second episode, on the others. nan: no label varies."""
    parts = [
        (np.concatenate(inputs[first::2]), np.concatenate(labels[first::2])) for first in (0, 1)
    ]
    (x, y), (x_other, y_other) = ((x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in parts)
    if min(len(y), len(y_other)) < 2 or y_other.std() == 0:
        return float("nan")
    predicted = Readout.fit(x, y).read(x_other)
    return float(1 - np.square(y_other - predicted).mean() / y_other.var())


@dataclass(frozen=True)
class Readout:
    """Ridge regression of a label y on standardised inputs: ŷ = weight · (x − mean) / std + y̅."""

    mean: np.ndarray
    """(D,), as std and weight."""
    std: np.ndarray
    weight: np.ndarray
    label_mean: float
    label_std: float

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray) -> Self:
        """From x (S, D) and y (S,)."""
        mean, std = x.mean(0), x.std(0) + 1e-8
        z, penalty = (x - mean) / std, RIDGE * len(x)
        if x.shape[1] <= len(x):
            weight = np.linalg.solve(z.T @ z + penalty * np.eye(x.shape[1]), z.T @ (y - y.mean()))
        else:  # the same, from the smaller of the two systems
            weight = z.T @ np.linalg.solve(z @ z.T + penalty * np.eye(len(x)), y - y.mean())
        return cls(mean, std, weight, float(y.mean()), float(y.std()))

    def read(self, x: np.ndarray) -> np.ndarray:
        """(S,) labels of x (S, D)."""
        return (x - self.mean) / self.std @ self.weight + self.label_mean

    def push(self, direction: np.ndarray | None = None) -> np.ndarray:
        """(D,) what to add to x so that it reads one standard deviation of the label more; along
        another `direction` (D,), as far, lengths in standard deviations of each input."""
        size = np.linalg.norm(self.weight)
        if size == 0:  # nothing is known of the label
            return np.zeros_like(self.weight)
        direction = self.weight if direction is None else direction
        return self.label_std / size * direction / np.linalg.norm(direction) * self.std
