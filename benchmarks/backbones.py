"""Every backbone's size and speed, as a Markdown table: `python benchmarks/backbones.py`.

A Decision S4 policy of the default sizes on Hopper. "training" is environment steps a second of
whole updates on 3 rows of 1,000 steps with episodes of 200; "resets" what those episodes add to a
forward and backward pass of the backbone beside unbroken rows. "step" is one acting step of the
policy at batch 1 (Actor), "a block" one step of the backbone over its blocks beside torch's GRUCell
of its width. Medians of interleaved repeats, one thread.
"""

import argparse
import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from acting import ACTION, OBSERVATION, time_step
from timing import interleaved, machine
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions, SequencePolicy, parameter_count

ROWS, STEPS, EPISODE = 3, 1000, 200
NAMES = [*sorted(BACKBONES), *sorted(MEMORYLESS)]
Call = Callable[[], object]


def training_batch(device: str) -> SimpleNamespace:
    """What PackedBatches gives, with random numbers."""
    torch.manual_seed(0)
    start = torch.arange(STEPS).expand(ROWS, STEPS) % EPISODE == 0
    batch = {
        "observation": torch.randn(ROWS, STEPS, *OBSERVATION.shape),
        "previous_action": torch.rand(ROWS, STEPS, *ACTION.shape) * 2 - 1,
        "action": torch.rand(ROWS, STEPS, *ACTION.shape) * 2 - 1,
        "return_to_go": torch.rand(ROWS, STEPS) * 3600,
        "timestep": torch.arange(STEPS).expand(ROWS, STEPS) % EPISODE,
        "start": start,
        "valid": torch.ones_like(start),
    }
    return SimpleNamespace(**{name: x.to(device) for name, x in batch.items()})


def calls(name: str, device: str) -> tuple[SequencePolicy, dict[str, Call]]:
    """The policy and what is timed of it."""
    torch.manual_seed(0)
    policy = SequencePolicy(OBSERVATION, ACTION, PolicyOptions(name)).to(device)
    batch = training_batch(device)
    learner = DecisionLearner(copy.deepcopy(policy), OptimiserOptions(), total_steps=10**6)
    x = torch.randn(ROWS, STEPS, policy.options.d_model, device=device, requires_grad=True)
    unbroken = torch.zeros_like(batch.start)
    step, actor = tree_map(lambda leaf: leaf.to(device), time_step(1)), Actor(policy.eval())
    before = actor.initial_state(1)
    _, state = actor.act(step, before)
    constants, token = policy.backbone.constants(), x[0, :1].detach()
    blocks = torch.inference_mode()(
        lambda: policy.backbone.step(token, policy.initial_state(1), None, constants)
    )
    return policy, {
        "update": synchronised(lambda: learner.update(batch), device),
        "packed": synchronised(lambda: both_ways(policy.backbone, x, batch.start), device),
        "unbroken": synchronised(lambda: both_ways(policy.backbone, x, unbroken), device),
        "step": synchronised(lambda: actor.act(step, state), device),
        "blocks": synchronised(blocks, device),
    }


def both_ways(backbone: torch.nn.Module, x: torch.Tensor, start: torch.Tensor) -> None:
    backbone(x, start=start)[0].square().mean().backward()


def synchronised(call: Call, device: str) -> Call:
    if device == "cpu":
        return call
    return lambda: (call(), torch.cuda.synchronize())


def gru_cell(device: str) -> Call:
    cell, x = torch.nn.GRUCell(64, 64).to(device), torch.randn(1, 64, device=device)
    return synchronised(torch.inference_mode()(lambda: cell(x, x)), device)


def row(name: str, device: str, repeats: int) -> str:
    policy, timed = calls(name, device)
    slow = {key: timed[key] for key in ("update", "packed", "unbroken")}
    fast = {key: timed[key] for key in ("step", "blocks")} | {"gru": gru_cell(device)}
    seconds = interleaved(slow, repeats, warmup=2) | interleaved(fast, 50 * repeats)
    median = {key: float(np.median(values)) for key, values in seconds.items()}
    resets = 100 * float(np.median(seconds["packed"] / seconds["unbroken"]) - 1)
    state = sum(leaf.nbytes for leaf in tree_leaves(policy.initial_state(1)))
    p50, p99 = 1e6 * median["step"], 1e6 * float(np.percentile(seconds["step"], 99))
    a_block = median["blocks"] / len(policy.backbone.blocks) / median["gru"]
    rate = ROWS * STEPS / median["update"]
    return (
        f"| {name} | {parameter_count(policy):,} | {rate:,.0f} | {resets:+.0f}% "
        f"| {p50:.0f} / {p99:.0f} | {a_block:.1f} × | {state:,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    print(machine() if given.device == "cpu" else torch.cuda.get_device_name())
    print(
        "\n| backbone | parameters | training, steps/s | resets | step p50 / p99, µs "
        "| a block beside GRUCell | state, bytes |\n|---|---|---|---|---|---|---|"
    )
    for name in given.names:
        print(row(name, given.device, given.repeats), flush=True)


if __name__ == "__main__":
    main()
