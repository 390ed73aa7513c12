"""One acting step on one core or a GPU: Decision S4 against Decision Transformer.

    python benchmarks/acting.py [--device cuda]

Prints the median and the 99th percentile in µs, and how many times the transformer's median is
each one's. "operations" is how many torch dispatches in a step: at batch 1 these, not arithmetic,
take the time. "own step" is the policy's differentiable step, "torch" what an Actor does unless
told otherwise, "C++" is Actor(policy, impl="cpu"), compiled at the first run, "graph" a recorded
CUDA graph. On a GPU observations are there already, and a step ends when the GPU is done.
"""

import argparse
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from peers.decision_transformer import DecisionTransformer, TransformerAgent
from rich.console import Console
from rich.table import Table
from timing import interleaved, machine
from torch.utils._python_dispatch import TorchDispatchMode

from decision_s4.agents.actor import Actor
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions, parameter_count
from decision_s4.envs.timestep import Agent, TimeStep

OBSERVATION = spaces.Box(-np.inf, np.inf, (11,))  # Hopper's
ACTION = spaces.Box(-1, 1, (3,))
PEER = "Decision Transformer"


class OwnStep:
    """The policy's differentiable step, as an agent."""

    def __init__(self, policy: Policy):
        self.policy, self.constants = policy, policy.backbone.constants()

    @torch.inference_mode()
    def act(self, step: TimeStep, state: object, deterministic: bool = True) -> tuple:
        features, state = self.policy.step(step, state, self.constants)
        return self.policy.head.act(features, deterministic), state

    def initial_state(self, batch_size: int) -> object:
        return self.policy.initial_state(batch_size)


def time_step(rows: int) -> TimeStep:
    """A moment in the midst of `rows` episodes."""
    never = torch.zeros(rows, dtype=torch.bool)
    moment = torch.randn(rows, 11), torch.rand(rows, 3) * 2 - 1, torch.ones(rows)
    return TimeStep(*moment, torch.full((rows,), 3600.0), never, never, never)


def stepper(agent: Agent, rows: int) -> Callable[[], object]:
    """One step of the agent from a state of 40 steps, beyond the transformer's window."""
    step, state = time_step(rows), agent.initial_state(rows)
    for _ in range(40):
        _, state = agent.act(step, state)
    return synchronised(lambda: agent.act(step, state), step.start.device)


def synchronised(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    if device.type == "cpu":
        return call

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def gru_stepper(rows: int) -> Callable[[], object]:
    """One GRUCell of the same width: what torch needs for the least of recurrent layers."""
    cell, x, h = torch.nn.GRUCell(64, 64), torch.randn(rows, 64), torch.randn(rows, 64)
    return synchronised(torch.inference_mode()(lambda: cell(x, h)), x.device)


class Counter(TorchDispatchMode):
    """Counts the operations that torch dispatches, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.operations += 1
        return operation(*args, **(kwargs or {}))


def operations(step: Callable[[], object]) -> int:
    """How many a step takes."""
    with Counter() as counter:
        step()
    return counter.operations


def contenders(device: str) -> dict[str, Agent]:
    transformer = DecisionTransformer(11, 3)
    agents: dict[str, Agent] = {PEER: TransformerAgent(transformer)}
    print(f"{PEER}: {parameter_count(transformer):,} parameters")
    for backbone in ("s4", "s4d"):
        policy = make_policy(OBSERVATION, ACTION, PolicyOptions(backbone=backbone)).eval()
        print(f"Decision S4, {backbone}: {parameter_count(policy):,} parameters")
        agents[f"{backbone}, own step"] = OwnStep(policy)
        agents[f"{backbone}, torch"] = Actor(policy)
        fast = Actor(policy, "cpu") if device == "cpu" else Actor(policy, "graph")
        agents[f"{backbone}, {'C++' if device == 'cpu' else 'graph'}"] = fast
    return agents


def show(rows: int, seconds: dict[str, np.ndarray], counts: dict[str, int]) -> None:
    title = f"batch {rows}"
    table = Table("", "p50 µs", "p99 µs", "times faster", "operations", title=title)
    peer = np.median(seconds[PEER])
    for name, each in seconds.items():
        p50, p99 = np.percentile(each, [50, 99]) * 1e6
        times = f"{peer / np.median(each):.1f}"
        table.add_row(name, f"{p50:,.0f}", f"{p99:,.0f}", times, str(counts[name]))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    with torch.device(given.device):
        agents = contenders(given.device)
    for rows, repeats in ((1, 2000), (100, 50)):
        with torch.device(given.device):  # what is made now lies there
            steppers = {name: stepper(agent, rows) for name, agent in agents.items()}
            steppers["GRUCell(64)"] = gru_stepper(rows)
        counts = {name: operations(step) for name, step in steppers.items()}
        show(rows, interleaved(steppers, repeats), counts)


if __name__ == "__main__":
    main()
