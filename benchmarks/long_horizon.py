"""An answer that lies more steps back than a window of 20 reads: who still knows it?

    python benchmarks/long_horizon.py                 corridors of 30, 60 and 120 steps
    python benchmarks/long_horizon.py --lengths 400   a longer one

An episode shows −1 or 1 at its first step and nothing on the way; at its last step the policy says
which it was, and is paid 1 if right. The logged agent remembers, but errs one time in four. The
dataset is written by envs/minari_writer.py. Each learner gets the same data and number of updates;
printed is the share of right answers in 200 episodes, chance being a half.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.config import CONFIGS, parse
from decision_s4.agents.policy import parameter_count
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs import datasets
from decision_s4.envs.collect import sample_episodes
from decision_s4.envs.minari_writer import Description, write_dataset
from decision_s4.envs.rollout import rollout
from decision_s4.envs.task import Task
from decision_s4.envs.timestep import TimeStep

SMALL = (
    "--d-model 32 --d-embed 16 --n-layers 2 --learning-rate 3e-3 --return-scale 1 --warmup-steps 50"
)
LEARNERS = {
    "decision-s4": f"--algo decision-s4 --config {CONFIGS}/tasks/memory.yaml",
    "decision-transformer, context 20": (
        "--algo decision-transformer --schedule cosine --average-decay .99 "
        "--backbone-options n_heads=1,window=60,positions=none"
    ),
    "no memory": "--algo decision-s4 --backbone mlp",
}


class Corridor(gym.Env):
    """Observes (cue at the first step, whether this is the last step)."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, length: int):
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.cue = 0, int(self.np_random.integers(2))
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        done = self.time == self.length
        seen = np.array([0, self.time == self.length - 1], np.float32)
        return seen, float(done and action == self.cue), done, False, {}


class Forgetful:
    """Walks on, and at the end answers rightly three times in four."""

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, dtype=torch.long)

    def act(
        self, step: TimeStep, state: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor]:
        cue = torch.where(step.start, (step.observation[:, 0] > 0).long(), state)
        errs = torch.rand(cue.shape) < 0.25
        return torch.where(errs, 1 - cue, cue) * (step.observation[:, 1] > 0), cue


def _corridor(**settings: Any) -> gym.Env:
    return Corridor(**settings)


def register(length: int) -> str:
    """The id of a corridor of `length` steps."""
    env_id = f"Corridor{length}-v0"
    if env_id not in gym.registry:
        gym.register(env_id, entry_point=_corridor, kwargs={"length": length})
    return env_id


def make_dataset(env_id: str, episodes: int) -> str:
    """The name of a fresh dataset of the forgetful agent."""
    length, name = gym.spec(env_id).kwargs["length"], f"corridor/{env_id.lower()}"
    torch.manual_seed(0)
    logged = sample_episodes(Forgetful(), env_id, episodes * length, 0, rows=episodes, workers=1)
    write_dataset(logged, Description(name, env_id, "scripted", Forgetful.__doc__ or ""))
    return name


def right_answers(name: str, env_id: str, flags: str, updates: int) -> tuple[float, int]:
    """Share of right answers after a training, and the policy's number of parameters."""
    config = parse(TrainConfig, [*f"{SMALL} {flags}".split(), "--steps", str(updates)])
    data = datasets.load(name)
    run = Training(config, data, Task(env_id, (1.0,)), torch.device("cpu"))
    while not run.finished:
        run.update()
    policy = run.learner.averaged_policy
    count = 200
    seeds = list(range(10_000, 10_000 + count))
    played = rollout(Actor(policy), env_id, [1.0] * count, seeds, workers=1)
    return float(played.returns.mean()), parameter_count(policy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[30, 60, 120])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--episodes", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| steps back | learner | parameters | right answers | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(folder) / "data")
        os.environ["DECISION_S4_CACHE"] = str(Path(folder) / "cache")
        for length in given.lengths:
            env_id = register(length)
            name = make_dataset(env_id, given.episodes)
            for learner, flags in LEARNERS.items():
                begin = time.perf_counter()
                right, size = right_answers(name, env_id, flags, given.updates)
                spent = time.perf_counter() - begin
                print(
                    f"| {length - 1} | {learner} | {size:,} | {right:.2f} | {spent:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
