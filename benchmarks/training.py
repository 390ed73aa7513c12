"""Training speed beside Decision Transformer: `python benchmarks/training.py`.

Whole updates (forward, backward, clipping, AdamW, averaging) on batches of 1,280 environment steps:
whole episodes for Decision S4, 64 windows of 20 for Decision Transformer at its published size.
"timesteps" are steps whose action is learned. Medians of interleaved repeats; on CUDA a repeat is
eight updates, waited for at their end, as training waits for none but those that it logs. There
Decision S4 also replays updates recorded as a graph; Decision Transformer runs as it is published.
--backbones NAME … adds others in place of S4.
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

WARMUP = 32  # updates, in which recorded ones find the room that they need
TOGETHER = {"cpu": 1, "cuda": 8}
RUNS = {
    "decision-transformer": "--algo decision-transformer",
    "decision-s4": "--algo decision-s4 --batch-steps 1280 --no-record-updates",
    "decision-s4 on s4d": "--algo decision-s4 --backbone s4d --batch-steps 1280 "
    "--no-record-updates",
}


def recorded(runs: dict[str, str]) -> dict[str, str]:
    """Those of Decision S4, with updates recorded."""
    return {
        f"{name}, recorded": flags.replace("--no-record", "--record")
        for name, flags in runs.items()
        if "s4" in name
    }


def updates(
    flags: str, device: torch.device, together: int
) -> tuple[Callable[[], object], list[int]]:
    """Some updates a call, and the steps that each call learned from."""
    config, data, steps = parse(TrainConfig, flags.split()), load("hopper-mixed"), []
    run = Training(config, data, task_of(data, "none", ()), device)

    def update() -> None:
        steps.append(sum(run.update()[1] for _ in range(together)))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return update, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--backbones", nargs="*", default=[], help="beside those of the table")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}; {given.threads} threads, {given.device}\n")
    runs = RUNS | recorded(RUNS) if given.device == "cuda" else RUNS
    s4 = RUNS["decision-s4"]
    others = {f"decision-s4 on {name}": f"{s4} --backbone {name}" for name in given.backbones}
    runs |= others | (recorded(others) if given.device == "cuda" else {})
    device, together = torch.device(given.device), TOGETHER[given.device]
    made = {name: updates(flags, device, together) for name, flags in runs.items()}
    contenders = {name: call for name, (call, _) in made.items()}
    seconds = interleaved(contenders, given.repeats, warmup=WARMUP // together)
    print("| | update, ms | timesteps/s | × |\n|---|---|---|---|")
    rates = {}
    for name, (_, steps) in made.items():
        learned = np.array(steps[-given.repeats :])
        rates[name] = float(np.median(learned / seconds[name]))
        times = rates[name] / next(iter(rates.values()))
        update = 1e3 * float(np.median(seconds[name])) / together
        print(f"| {name} | {update:.1f} | {rates[name]:,.0f} | {times:.1f} |")


if __name__ == "__main__":
    main()
