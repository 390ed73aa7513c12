"""Evaluating 100 episodes of Hopper-v5: lockstep Decision S4 against a serial transformer.

    python benchmarks/evaluation.py

Both play whole episodes of 1,000 steps (the hopper may fall and lie), so both take equally many
environment steps. Decision S4 plays all 100 at once through `rollout`, as evaluate.py does.
Decision Transformer plays as published code does, one environment after another; it plays a few
episodes and the time is scaled up. "simulator" is Hopper alone on one core, the same scaled up.
"""

import argparse
import time

import gymnasium as gym
import torch
from acting import ACTION, OBSERVATION, PEER
from peers.decision_transformer import DecisionTransformer, TransformerAgent
from rich.console import Console
from rich.table import Table

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import PolicyOptions, SequencePolicy
from decision_s4.envs.rollout import rollout
from decision_s4.envs.timestep import Agent

ENDLESS = {"terminate_when_unhealthy": False}
STEPS = 1000


def play(agent: Agent, episodes: int, workers: int | None) -> float:
    """Seconds an environment step."""
    begin = time.perf_counter()
    seeds = list(range(episodes))
    played = rollout(agent, "Hopper-v5", [3600.0] * episodes, seeds, ENDLESS, workers=workers)
    assert (played.lengths == STEPS).all()
    return (time.perf_counter() - begin) / (episodes * STEPS)


def play_serially(agent: Agent, episodes: int) -> float:
    """Seconds an environment step, one environment after another in this process."""
    return sum(play(agent, 1, workers=1) for _ in range(episodes)) / episodes


def simulate(episodes: int) -> float:
    """Seconds a step of Hopper alone, with random actions."""
    env = gym.make("Hopper-v5", **ENDLESS)
    env.action_space.seed(0)
    begin = time.perf_counter()
    for episode in range(episodes):
        env.reset(seed=episode)
        for _ in range(STEPS):
            env.step(env.action_space.sample())
    return (time.perf_counter() - begin) / (episodes * STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--serial-episodes", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = TransformerAgent(DecisionTransformer(11, 3))
    policy = SequencePolicy(OBSERVATION, ACTION, PolicyOptions()).eval()
    fast = Actor(policy, impl="cpu")
    few, many = args.serial_episodes, args.episodes
    seconds = {
        f"{PEER}, one environment": play_serially(transformer, few),
        f"{PEER}, lockstep": play(transformer, 16, workers=None),
        "Decision S4, lockstep": play(Actor(policy), many, workers=None),
        "Decision S4 in C++, lockstep": play(fast, many, workers=None),
        "Decision S4 in C++, one environment": play_serially(fast, few),
        "simulator": simulate(few),
    }
    seconds[f"{PEER}, one environment"] += play_serially(transformer, few)
    seconds[f"{PEER}, one environment"] /= 2  # before and after: the machine may drift
    show(seconds, many)


def show(seconds: dict[str, float], episodes: int) -> None:
    title = f"{episodes} episodes of {STEPS:,} steps"
    table = Table("", "steps/s", "minutes", "times faster", title=title)
    peer = next(iter(seconds.values()))
    for name, each in seconds.items():
        minutes = each * episodes * STEPS / 60
        table.add_row(name, f"{1 / each:,.0f}", f"{minutes:.2f}", f"{peer / each:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
