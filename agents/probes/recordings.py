"""Recorded episodes: what a policy read, step by step, from a rollout or from logged data.

Shapes: T steps of an episode, F features of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import Policy
from decision_s4.envs.rollout import Transition, rollout
from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.steps import Steps
from decision_s4.envs.task import Task
from decision_s4.envs.tensors import as_tensor
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True)
class Recording:
    """One episode."""

    label: str
    observation: Tree  # (T, …)
    previous_action: Tree  # (T, …)
    return_to_go: Tensor  # (T,)
    reward: Tensor  # (T,)
    action: Tree  # (T, …) as taken
    features: Tensor  # (T, F) what the policy makes of its inputs
    terminated: bool | None = None  # by the environment, else cut; None where nobody says

    @property
    def steps(self) -> int:
        """T."""
        return len(self.return_to_go)

    def batch(self, first: int, end: int, begins: bool = False) -> Any:
        """Steps [first, end) as one row; `begins` has the policy take them for an episode."""
        cut = {
            name: map_tree(lambda leaf: leaf[None, first:end], getattr(self, name))
            for name in ("observation", "previous_action", "return_to_go")
        }
        time = torch.arange(first, end, device=self.return_to_go.device)[None]
        start = time == (first if begins else 0)
        return SimpleNamespace(**cut, timestep=time, start=start, valid=torch.ones_like(start))

    def stretch(self, first: int, end: int) -> Tensor:
        """(end − first, F) features; an episode that ended before holds its last step."""
        time = torch.arange(first, end).clamp(max=self.steps - 1)
        return self.features[time]


@torch.no_grad()
def input_features(policy: Policy, return_to_go: Tensor, observation: Tree, action: Tree) -> Tensor:
    """(…, F): scaled return-to-go, standardised observation, previous action."""
    parts = (
        policy.scaled(return_to_go),
        policy.observation_features(observation),
        policy.action_features(action),
    )
    return torch.cat(parts, -1)


def play(
    policy: Policy, task: Task, episodes: int, seed: int, max_steps: int = 1000
) -> list[Recording]:
    """`episodes` episodes for each target return of the task, target by target."""
    targets = [aim or 0.0 for aim in task.aims for _ in range(episodes)]
    seeds = [seed + i for _ in task.aims for i in range(episodes)]
    seen: list[list[tuple[Tree, Tree, float]]] = [[] for _ in targets]

    def keep(transition: Transition) -> None:
        for i, row in enumerate(transition.rows):
            pick = lambda leaf, i=i: leaf[i]  # noqa: E731
            observation = map_tree(pick, transition.observation)
            action = map_tree(pick, transition.action)
            seen[row].append((observation, action, float(transition.reward[i])))

    actor, env_id = Actor(policy), task.environment
    played = rollout(actor, env_id, targets, seeds, task.env_kwargs, max_steps, recorder=keep)
    made_of = [
        _recording(policy, _label(policy, target, number), target, steps)
        for target, number, steps in zip(targets, seeds, seen, strict=True)
    ]
    ends = played.terminated.tolist()
    return [replace(each, terminated=end) for each, end in zip(made_of, ends, strict=True)]


def _recording(
    policy: Policy, label: str, target: float, steps: list[tuple[Tree, Tree, float]]
) -> Recording:
    observations, actions, rewards = zip(*steps, strict=True)
    reward = np.asarray(rewards)
    to_go = target - np.concatenate([[0.0], np.cumsum(reward)[:-1]])
    observation, action = _stacked(observations), _stacked(actions)
    return made(policy, label, observation, action, torch.from_numpy(to_go).float(), reward)


def made(
    policy: Policy, label: str, observation: Tree, action: Tree, to_go: Tensor, reward: Any
) -> Recording:
    """A recording of one episode's arrays, with the features that `policy` makes of them."""
    before = map_tree(lambda leaf: torch.cat([torch.zeros_like(leaf[:1]), leaf[:-1]]), action)
    features = input_features(policy, to_go, observation, before)
    features[0, -policy.action_features.width :] = 0  # no action precedes the first step
    reward = torch.as_tensor(reward).float()
    return Recording(label, observation, before, to_go, reward, action, features)


def logged(policy: Policy, data: Trajectories, episodes: Sequence[int]) -> list[Recording]:
    """Episodes of a dataset, by their numbers."""
    steps = Steps(data)
    found = []
    for episode in episodes:
        length = int(steps.lengths[episode])
        time = np.arange(length)
        batch = steps.batch(
            time + steps.offsets[episode],
            np.full(length, episode),
            time == 0,
            np.ones((1, length), bool),
        )
        row = {
            name: map_tree(lambda leaf: leaf[0], getattr(batch, name))
            for name in ("observation", "action", "return_to_go", "reward")
        }
        to_go = row.pop("return_to_go")
        found.append(made(policy, f"logged episode {episode}", to_go=to_go, **row))
    return found


def _stacked(values: Sequence[Tree]) -> Tree:
    return map_tree(lambda *leaves: as_tensor(np.stack(leaves)), values[0], *values[1:])


def _label(policy: Policy, target: float, seed: int) -> str:
    asked = f"asked for {target:g}, " if policy.options.condition_on_return else ""
    return f"{asked}seed {seed}"
