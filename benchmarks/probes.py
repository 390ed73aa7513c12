"""What a probe costs on every backbone, as a Markdown table: `python benchmarks/probes.py`.

A Decision S4 policy of the default sizes on Hopper and one row of T steps, one thread, float32.
"held" makes the operators of all three layers, "a row" is then one row of the last layer's implicit
attention, all heads of it; "lrp" and "tensorlens" are one answer's map each, the policy's run
included. Times are the process's own, so that other work on the machine hardly counts. "memory" is
what the process holds at most while it makes the row, above what it held before, at T and at 2 T:
twice as much is O(T). A process a measurement; Linux.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from acting import ACTION, OBSERVATION
from timing import machine

from decision_s4.agents.backbones.base import BACKBONES
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.probes.attention import operators
from decision_s4.agents.probes.reading import action_at
from decision_s4.agents.probes.relevance import relevance
from decision_s4.agents.probes.tensorlens import tensorlens
from decision_s4.agents.sequence_policy import SequencePolicy

STEPS, REPEATS = 1000, 3


def batch(steps: int) -> SimpleNamespace:
    """One episode of random numbers."""
    torch.manual_seed(0)
    start = torch.arange(steps)[None] == 0
    return SimpleNamespace(
        observation=torch.randn(1, steps, *OBSERVATION.shape),
        previous_action=torch.rand(1, steps, *ACTION.shape) * 2 - 1,
        return_to_go=torch.rand(1, steps) * 3600,
        timestep=torch.arange(steps)[None],
        start=start,
        valid=torch.ones_like(start),
    )


def resident(field: str) -> float:
    """MiB that the process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def added(call: Callable[[], object]) -> float:
    """MiB above what the process holds that it needs for a call."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def seconds(call: Callable[[], object]) -> float:
    """The fastest of REPEATS."""
    found = []
    for _ in range(REPEATS):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def measure(name: str, steps: int) -> list[float]:
    """Seconds of each probe, then MiB of a row."""
    torch.set_num_threads(1)
    policy = SequencePolicy(OBSERVATION, ACTION, PolicyOptions(name)).eval()
    data, answer = batch(steps), action_at(steps - 1)
    op = operators(policy, data)[-1]
    memory = added(lambda: op.rows([steps - 1]))
    return [
        seconds(lambda: operators(policy, data)),
        seconds(lambda: op.rows([steps - 1])),
        seconds(lambda: relevance(policy, data, answer)),
        seconds(lambda: tensorlens(policy, data, answer)),
        memory,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=sorted(BACKBONES), help="backbones, all if none"
    )
    parser.add_argument("--measure", type=int, metavar="T", help="one backbone, bare figures")
    arguments = parser.parse_args()
    if arguments.measure:
        print(*measure(arguments.names[0], arguments.measure))
        return
    print(f"{machine()}; T = {STEPS}\n")
    print("| backbone | held, ms | a row, ms | lrp, ms | tensorlens, ms | memory at T, 2 T, MiB |")
    print("|---|---|---|---|---|---|")
    for name in arguments.names:
        *times, small = _in_a_process(name, STEPS)
        *_, large = _in_a_process(name, 2 * STEPS)
        cells = " | ".join(f"{1000 * each:.0f}" for each in times)
        print(f"| `{name}` | {cells} | {small:.0f}, {large:.0f} |", flush=True)


def _in_a_process(name: str, steps: int) -> list[float]:
    command = [sys.executable, str(Path(__file__)), name, "--measure", str(steps)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(figure) for figure in out.stdout.split()]


if __name__ == "__main__":
    main()
