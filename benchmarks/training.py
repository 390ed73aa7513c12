"""Training speed beside Decision Transformer: `python benchmarks/training.py`.

Whole updates (forward, backward, clipping, AdamW, averaging) on batches of 1,280 environment steps:
whole episodes for Decision S4, 64 windows of 20 for Decision Transformer at its published size.
"timesteps" are steps whose action is learned. Medians of interleaved repeats. On CUDA Decision S4
also replays updates recorded as a graph; Decision Transformer runs as it is published, without.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved, machine

from decision_s4.agents.config import parse
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs.datasets import load
from decision_s4.envs.task import task_of

WARMUP = 20  # rounds in which recorded updates find the room that they need
RUNS = {
    "decision-transformer": "--algo decision-transformer",
    "decision-s4": "--algo decision-s4 --batch-steps 1280",
    "decision-s4 on s4d": "--algo decision-s4 --backbone s4d --batch-steps 1280",
}
RECORDED = {
    f"{name}, recorded": f"{flags} --record-updates" for name, flags in RUNS.items() if "s4" in name
}


def updates(flags: str, device: torch.device) -> tuple[Callable[[], object], list[int]]:
    """One update a call, and the steps that each learned from."""
    config, data, steps = parse(TrainConfig, flags.split()), load("hopper-mixed"), []
    run = Training(config, data, task_of(data, "none", ()), device)

    def update() -> None:
        steps.append(run.update()[1])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return update, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}; {given.threads} threads, {given.device}\n")
    runs = RUNS | RECORDED if given.device == "cuda" else RUNS
    made = {name: updates(flags, torch.device(given.device)) for name, flags in runs.items()}
    contenders = {name: call for name, (call, _) in made.items()}
    seconds = interleaved(contenders, given.repeats, warmup=WARMUP)
    print("| | update, ms | timesteps/s | × |\n|---|---|---|---|")
    rates = {}
    for name, (_, steps) in made.items():
        learned = np.array(steps[-given.repeats :])
        rates[name] = float(np.median(learned / seconds[name]))
        times = rates[name] / next(iter(rates.values()))
        update = 1e3 * float(np.median(seconds[name]))
        print(f"| {name} | {update:.1f} | {rates[name]:,.0f} | {times:.1f} |")


if __name__ == "__main__":
    main()
