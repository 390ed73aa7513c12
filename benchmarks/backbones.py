"""Every backbone's size and speed, as a Markdown table and, with --results, rows of a CSV file.

    python benchmarks/backbones.py --results benchmarks/results/backbones_cpu.csv
    python benchmarks/backbones.py --results benchmarks/results/backbones_h100.csv --device cuda

Names that the file has are not measured again; `benchmarks/backbone_table.py` joins it with what
they return. A Decision S4 policy of the default sizes on Hopper. "training" is environment steps a
second of whole updates on 3 rows of 1,000 steps with episodes of 200, recorded on a GPU where they
can be; "resets" what those episodes add to a forward and backward pass of the backbone beside
unbroken rows, on the CPU in the process's own time. "step" is one acting step of the policy at
batch 1, as Actor does it unless told otherwise, and compiled (impl="compiled", on the CPU). "a
block" is the faster of the two over the number of blocks, embedding and head included, beside
torch's GRUCell of the backbone's width, and before it the blocks' own steps, operation by
operation. Medians of interleaved repeats, one thread.
"""

import argparse
import copy
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import csv_rows
import numpy as np
import torch
from acting import ACTION, OBSERVATION, time_step
from timing import interleaved, machine
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones.base import BACKBONES, MEMORYLESS
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.policy import PolicyOptions, parameter_count
from decision_s4.agents.recorded import recorded_updates
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.kernels.cuda_graph import WARMUP

ROWS, STEPS, EPISODE = 3, 1000, 200
NAMES = [*sorted(BACKBONES), *sorted(MEMORYLESS)]
Call = Callable[[], object]


def training_batch(device: str) -> Any:
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
    x = torch.randn(ROWS, STEPS, policy.options.d_model, device=device, requires_grad=True)
    unbroken = torch.zeros_like(batch.start)
    step, policy = tree_map(lambda leaf: leaf.to(device), time_step(1)), policy.eval()
    actors = {"step": Actor(policy)}
    if device == "cpu":
        actors["compiled"] = Actor(policy, "compiled")
    for actor in actors.values():
        _, state = actor.act(step, actor.initial_state(1))
    if "compiled" in actors and getattr(actors["compiled"]._act, "rows", None) is None:
        del actors["compiled"]  # a warning has said why
    steps = {
        each: synchronised(partial(actor.act, step, state), device)
        for each, actor in actors.items()
    }
    constants, token = policy.backbone.constants(), x[0, :1].detach()
    blocks = torch.inference_mode()(
        lambda: policy.backbone.step(token, policy.initial_state(1), None, constants)
    )
    return policy, {
        "update": synchronised(update(policy, batch, device), device),
        "packed": synchronised(lambda: both_ways(policy.backbone, x, batch.start), device),
        "unbroken": synchronised(lambda: both_ways(policy.backbone, x, unbroken), device),
        "blocks": synchronised(blocks, device),
        **steps,
    }


def update(policy: SequencePolicy, batch: Any, device: str) -> Call:
    """A whole update as train.py does it: on CUDA recorded, where it can be."""
    learner = DecisionLearner(copy.deepcopy(policy), OptimiserOptions(), total_steps=10**6)
    recorded = recorded_updates(learner, torch.device(device))
    if recorded is None:
        return lambda: learner.update(batch)
    batch = training_batch("cpu")
    for _ in range(WARMUP + 1):
        recorded.update(batch)
    return lambda: recorded.update(batch)


def both_ways(backbone: torch.nn.Module, x: torch.Tensor, start: torch.Tensor) -> None:
    backbone(x, start=start)[0].square().mean().backward()


def synchronised(call: Call, device: str) -> Call:
    if device == "cpu":
        return call

    def both() -> None:
        call()
        torch.cuda.synchronize()

    return both


def gru_cell(device: str) -> Call:
    cell, x = torch.nn.GRUCell(64, 64).to(device), torch.randn(1, 64, device=device)
    return synchronised(torch.inference_mode()(lambda: cell(x, x)), device)


def row(name: str, device: str, repeats: int) -> dict[str, Any]:
    """What was measured of a backbone."""
    policy, timed = calls(name, device)
    update = {"update": timed.pop("update")}
    resets = {key: timed.pop(key) for key in ("packed", "unbroken")}
    fast = timed | {"gru": gru_cell(device)}
    clock = time.process_time if device == "cpu" else time.perf_counter  # small differences
    seconds = interleaved(update, repeats, 2) | interleaved(resets, repeats, 2, clock)
    seconds |= interleaved(fast, 50 * repeats)
    median = {key: float(np.median(values)) for key, values in seconds.items()}
    compiled = 1e6 * np.percentile(seconds.get("compiled", [np.nan]), [50, 99])
    gru = median["gru"] * len(policy.backbone.blocks)
    return {
        "backbone": name,
        "parameters": parameter_count(policy),
        "steps_per_second": round(ROWS * STEPS / median["update"]),
        "resets_percent": round(100 * np.median(seconds["packed"] / seconds["unbroken"]) - 100, 1),
        "step_p50_us": round(1e6 * median["step"], 1),
        "step_p99_us": round(1e6 * np.percentile(seconds["step"], 99), 1),
        "compiled_p50_us": round(compiled[0], 1),
        "compiled_p99_us": round(compiled[1], 1),
        "block_over_gru_cell": round(median["blocks"] / gru, 2),
        "acting_over_gru_cell": round(
            np.nanmin([median["step"] / gru, compiled[0] / gru / 1e6]), 2
        ),
        "gru_cell_us": round(1e6 * median["gru"], 1),
        "state_bytes": sum(leaf.nbytes for leaf in tree_leaves(policy.initial_state(1))),
        "load": round(os.getloadavg()[0], 1),
        "machine": torch.cuda.get_device_name()
        if device == "cuda"
        else machine().split("; load")[0],
    }


def line(found: dict[str, Any]) -> str:
    name, parameters, rate, resets, p50, p99, c50, c99, own, acting, _, state, *_ = found.values()
    return (
        f"| {name} | {int(parameters):,} | {int(rate):,} | {float(resets):+.0f}% "
        f"| {float(p50):.0f} / {float(p99):.0f} | {float(c50):.0f} / {float(c99):.0f} "
        f"| {float(own):.1f} × | {float(acting):.1f} × | {int(state):,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", type=Path, help="CSV file to go on with")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    print(machine() if given.device == "cpu" else torch.cuda.get_device_name())
    print(
        "\n| backbone | parameters | training, steps/s | resets | step p50 / p99, µs | compiled "
        "| own blocks beside GRUCell | a block | state, bytes |\n" + "|---" * 9 + "|"
    )
    known = {found["backbone"]: found for found in csv_rows.read(given.results)}
    for name in given.names:
        found = known.get(name) or row(name, given.device, given.repeats)
        print(line(found), flush=True)
        if given.results and name not in known:
            csv_rows.append(given.results, [found])


if __name__ == "__main__":
    main()
