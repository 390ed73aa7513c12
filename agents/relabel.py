"""Returns-to-go relabelled by a learned value, so that a poor episode's good part counts.

    R̂_t = r_t + max(R̂_{t+1}, V(s_{t+1}, t + 1)),  R̂ = 0 after a termination

as in Q-learning Decision Transformer (arXiv 2209.03993, algorithm 1), whose V comes from CQL at a
discount. Here V is the mean of R̂ itself over the data, undiscounted as returns-to-go are, given
observation and time; value and labels are fitted in turns. Shapes: N steps of E episodes.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decision_s4.agents.critics import ValueFunction
from decision_s4.agents.encoders import set_statistics
from decision_s4.agents.kept import kept
from decision_s4.agents.optimisers import adam, take_step
from decision_s4.envs.spaces import map_tree
from decision_s4.envs.steps import Steps
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.trajectories import Trajectories

CHUNK = 1 << 16
TIME = spaces.Box(0, np.inf, (1,))
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RelabelledTrajectories(Trajectories):
    """Trajectories whose returns-to-go are the ones given."""

    labels: np.ndarray  # (N,) float64

    def returns_to_go(self) -> np.ndarray:
        """(N,) float64: the labels."""
        return self.labels


@dataclass(frozen=True)
class RelabelOptions:
    """Whether and how returns-to-go are relabelled."""

    relabel_rounds: int = kept(0)
    """Times that a value is fitted and returns-to-go raised to it where a logged episode got
    less; 0 keeps the logged ones. Each lets a return flow over one more crossing of episodes."""
    relabel_steps: int = kept(1000)
    """Updates of the value in each round."""


def relabelled(
    trajectories: Trajectories, options: RelabelOptions, seed: int, device: torch.device
) -> Trajectories:
    """The trajectories with returns-to-go raised to the learned value, or as they are."""
    if not options.relabel_rounds:
        return trajectories
    logged = labels = trajectories.returns_to_go()
    fit = _ValueFit(trajectories, seed, device)
    for number in range(options.relabel_rounds):
        error = fit.train(labels, options.relabel_steps)
        labels = raised_labels(trajectories, fit.values())
        log.info(
            "relabelling %d: value within %.1f, labels raised by %.1f on average",
            number + 1,
            error,
            (labels - logged).mean(),
        )
    fields = {name: getattr(trajectories, name) for name in trajectories.__dataclass_fields__}
    return RelabelledTrajectories(**fields, labels=labels)


def raised_labels(trajectories: Trajectories, values: np.ndarray) -> np.ndarray:
    """R̂ (N,) of V(s_t) = `values` (N + E,), one for each observation, the last one included.

    With C_t the rewards before step t: R̂_t + C_t is the largest of C_s + V(s_s) over s > t and of
    the whole return, a cumulative maximum from the episode's end.
    """
    labels = np.empty(trajectories.num_steps)
    for episode, (first, last) in enumerate(_bounds(trajectories)):
        rewards = np.asarray(trajectories.rewards[first:last])
        before = np.concatenate([[0.0], np.cumsum(rewards)])
        reached = before + values[first + episode : last + episode + 1]
        if trajectories.terminations[last - 1]:
            reached[-1] = before[-1]
        reached[-1] = max(reached[-1], before[-1])
        labels[first:last] = np.maximum.accumulate(reached[:0:-1])[::-1] - before[:-1]
    return labels


def _bounds(trajectories: Trajectories) -> np.ndarray:
    offsets = trajectories.action_offsets
    return np.stack([offsets[:-1], offsets[1:]], 1)


class _ValueFit:
    """V(s, t), a perceptron fitted to labels by least squares."""

    def __init__(self, trajectories: Trajectories, seed: int, device: torch.device):
        self.steps, self.device = Steps(trajectories), device
        self.draw = np.random.default_rng([seed, 1])
        self.horizon = float(trajectories.lengths.max())
        own = trajectories.observation_space
        self.value = ValueFunction(spaces.Tuple((own, TIME)), width=256, layers=2).to(device)
        mean, std = trajectories.observation_statistics()
        features = self.value.observation_features
        set_statistics(features, {"0": mean, "1": [0.5]}, {"0": std, "1": [0.3]})
        self.optimiser = adam(self.value, 1e-3)
        self.centre, self.scale = 0.0, 1.0

    def train(self, labels: np.ndarray, updates: int, size: int = 1024) -> float:
        """Fit V to `labels` (N,); returns the root mean squared error over the last updates."""
        self.centre, self.scale = float(labels.mean()), float(labels.std()) or 1.0
        losses = []
        for _ in range(updates):
            step, episode = self.steps.locate(self.draw.integers(len(labels), size=size))
            label = as_tensor((labels[step] - self.centre) / self.scale).to(self.device)
            error = self._read(step + episode, step - self.steps.offsets[episode]) - label
            losses.append(take_step(self.optimiser, error.square().mean()))
        return self.scale * torch.stack(losses[-100:]).mean().sqrt().item()

    @torch.no_grad()
    def values(self) -> np.ndarray:
        """V of every observation, (N + E,), in the units of the labels."""
        lengths = self.steps.lengths + 1
        first = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum())
        time = rows - np.repeat(first, lengths)
        chunks = (slice(i, i + CHUNK) for i in range(0, len(rows), CHUNK))
        parts = [self._read(rows[chunk], time[chunk]).cpu().numpy() for chunk in chunks]
        return np.concatenate(parts).astype(np.float64) * self.scale + self.centre

    def _read(self, row: np.ndarray, time: np.ndarray) -> Tensor:
        seen = map_tree(lambda leaf: as_tensor(leaf[row]).to(self.device), self.steps.observations)
        moment = as_tensor(time[:, None] / self.horizon).to(self.device)
        return self.value({"0": seen, "1": moment})
