"""Recurrent PPO beside sb3-contrib's RecurrentPPO: `python benchmarks/ppo_speed.py`.

Whole updates in turns: a rollout of 16 environments × 128 steps, then 10 passes of 4 minibatches, a
width of 64. No pass stops early. Ours steps its environments as the library does, in one process;
the library's policy has its own defaults around the LSTM (two layers of 64). Environment steps a
second, medians of the updates. On a machine that others use, `--clock processor` counts the seconds
that this process had: with one thread, those that it would take alone.
"""

import argparse
import time

import numpy as np
import torch
from timing import interleaved, machine

from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import parse

SHARED = "--seed 0"
OURS = "--algo ppo --rows 16 --rollout-steps 128 --epochs 10 --minibatches 4 --target-kl 0"
THEIRS = (
    "--algo recurrent-ppo --environments 16 --lstm-width 64 "
    "--agent-options n_steps=128,batch_size=512,n_epochs=10"
)
RUNS = {"sb3-contrib RecurrentPPO": THEIRS} | {
    f"ppo on {name}": f"{OURS} --backbone {name} --d-model 64 --n-layers 1"
    for name in ("lstm", "gru", "lru", "s4d", "mamba")
}

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", default="CartPoleNoVel-v1")
    parser.add_argument("--names", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}; {given.threads} threads, {given.env}, {given.clock} time\n")
    runs, steps = {}, {}
    for name in given.names:
        flags = f"{RUNS[name]} --env {given.env} {SHARED} --device cpu".split()
        algorithm = algorithm_of(flags[1])
        runs[name] = algorithm.begin(parse(algorithm.config, flags), torch.device("cpu"))
    calls = {name: lambda name=name: steps.update({name: runs[name].update()[1]}) for name in runs}
    seconds = interleaved(calls, given.repeats, 1, CLOCKS[given.clock])
    print("| | steps an update | seconds | steps/s | × |\n|---|---|---|---|---|")
    rates = {name: steps[name] / float(np.median(seconds[name])) for name in runs}
    for name, rate in rates.items():
        times = rate / next(iter(rates.values()))
        took = float(np.median(seconds[name]))
        print(f"| {name} | {steps[name]} | {took:.2f} | {rate:,.0f} | {times:.1f} |")


if __name__ == "__main__":
    main()
