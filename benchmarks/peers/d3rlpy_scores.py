"""Train d3rlpy's TD3+BC or IQL on arrays from a file; print the mean return of each evaluation.

Run by benchmarks/d3rlpy_check.py in an environment of its own. d3rlpy 2.8: its settings are its
defaults, which are the papers'; rewards are scaled for IQL and observations standardised as ours.
"""

import json
import sys

import d3rlpy
import gymnasium as gym
import numpy as np
from d3rlpy.preprocessing import MultiplyRewardScaler, StandardObservationScaler

KINDS = {"td3-bc": d3rlpy.algos.TD3PlusBCConfig, "iql": d3rlpy.algos.IQLConfig}


def main(algo: str, path: str, steps: int, every: int, episodes: int, seed: int) -> None:
    """Prints one JSON line an evaluation: step and mean return."""
    d3rlpy.seed(seed)
    file = np.load(path)
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    data = d3rlpy.dataset.MDPDataset(**{name: file[name] for name in names})
    scaling = {"observation_scaler": StandardObservationScaler()}
    if algo == "iql":
        scaling["reward_scaler"] = MultiplyRewardScaler(float(file["reward_scale"]))
    learner = KINDS[algo](**scaling).create(device="cpu:0")
    env = gym.make(str(file["env_id"]))
    quiet = {"show_progress": False, "logger_adapter": d3rlpy.logging.NoopAdapterFactory()}
    for epoch, _ in learner.fitter(data, n_steps=steps, n_steps_per_epoch=every, **quiet):
        returns = [_play(learner, env, seed + i) for i in range(episodes)]
        print(json.dumps({"step": epoch * every, "return": float(np.mean(returns))}), flush=True)


def _play(learner, env: gym.Env, seed: int) -> float:
    observation, total, over = env.reset(seed=seed)[0], 0.0, False
    while not over:
        action = learner.predict(observation[None].astype(np.float32))[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
