"""Evaluating 100 episodes of Hopper-v5: lockstep Decision S4 against a serial transformer.

    python benchmarks/evaluation.py

All episodes are whole ones of 1,000 steps (the hopper may fall and lie), so all contenders take
equally many environment steps. Decision S4 plays all 100 at once through `rollout`, as evaluate.py
does; Decision Transformer plays as published code does, one environment after another. Who plays
fewer than 100 episodes is measured by the step and its minutes are scaled up: the table says so.
"simulator" is Hopper alone on one core. Medians of rounds in which the contenders take turns.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from acting import ACTION, OBSERVATION, PEER
from peers.decision_transformer import DecisionTransformer, TransformerAgent
from rich.console import Console
from rich.table import Table
from timing import interleaved, machine

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
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
    parser.add_argument("--serial-episodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    few, many, some = args.serial_episodes, args.episodes, 16
    transformer = TransformerAgent(DecisionTransformer(11, 3))
    policy = SequencePolicy(OBSERVATION, ACTION, PolicyOptions()).eval()
    slow, fast = Actor(policy), Actor(policy, impl="cpu")
    contenders = {
        f"{PEER}, serial": (few, lambda: play_serially(transformer, few)),
        f"{PEER}, lockstep": (some, lambda: play(transformer, some, workers=None)),
        "Decision S4, lockstep": (many, lambda: play(slow, many, workers=None)),
        "Decision S4 in C++, lockstep": (many, lambda: play(fast, many, workers=None)),
        "Decision S4 in C++, serial": (few, lambda: play_serially(fast, few)),
        "simulator": (few, lambda: simulate(few)),
    }
    calls = {name: call for name, (_, call) in contenders.items()}
    seconds = interleaved(calls, args.rounds, warmup=0)
    show(seconds, {name: count for name, (count, _) in contenders.items()}, many)


def show(seconds: dict[str, np.ndarray], played: dict[str, int], episodes: int) -> None:
    """A line each; `seconds` of one round, in which `played` episodes were played."""
    title = f"{episodes} episodes of {STEPS:,} steps"
    table = Table("", "played", "steps/s", "minutes", "times faster", title=title)
    rates = {name: played[name] * STEPS / np.median(each) for name, each in seconds.items()}
    peer = next(iter(rates.values()))
    for name, rate in rates.items():
        scaled = "" if played[name] == episodes else " (scaled)"
        minutes = f"{episodes * STEPS / rate / 60:.2f}{scaled}"
        table.add_row(name, str(played[name]), f"{rate:,.0f}", minutes, f"{rate / peer:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
