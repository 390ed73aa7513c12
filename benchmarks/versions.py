"""Is this version as fast as an earlier one? `python benchmarks/versions.py COMMIT [s4 mamba …]`

Two processes, one importing the earlier commit's files and one this folder's (or those of the
commit --now), take turns: an update of a policy of the default sizes (forward and backward over a
packed row) and an acting step of one row, by the policy's own operations and by an Actor. Medians
of many short turns of process time, so that what else the machine does falls on both. Cells are
before / now: above 1 is faster than before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[1]
NAMES = ["s4", "s4d", "lru", "mamba", "mamba2", "gla", "gru", "transformer"]
STEPS = 500


@contextmanager
def checked_out(commit: str | None) -> Iterator[Path | None]:
    """A folder that `import decision_s4` finds the commit's files in; None for this one."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "decision_s4"
        package.mkdir()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "x", "-C", package], input=archive.stdout, check=True)
        yield Path(folder)


class Worker:
    """A process over one version's files, which times what it is told to."""

    def __init__(self, folder: Path | None):
        path = [str(folder)] if folder else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, backbone: str, turns: int) -> dict[str, list[float]]:
        """Seconds of `turns` calls of each kind."""
        into, out = self.process.stdin, self.process.stdout
        assert into and out, "pipes"
        into.write(json.dumps([backbone, turns]) + "\n")
        into.flush()
        return json.loads(out.readline())


def work() -> None:
    """Answer until nobody asks."""
    import torch

    torch.set_num_threads(1)
    made: dict[str, dict[str, Callable[[], object]]] = {}
    for line in sys.stdin:
        backbone, turns = json.loads(line)
        if backbone not in made:
            made[backbone] = calls(backbone)
        found = {
            kind: [seconds(call) for _ in range(turns)] for kind, call in made[backbone].items()
        }
        print(json.dumps(found), flush=True)


def seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def calls(backbone: str) -> dict[str, Callable[[], object]]:
    """What is timed, warm."""
    import torch
    from acting import ACTION, OBSERVATION, OwnStep, stepper

    from decision_s4.agents.actor import Actor
    from decision_s4.agents.policies import make_policy
    from decision_s4.agents.policy import PolicyOptions

    torch.manual_seed(0)
    policy = make_policy(OBSERVATION, ACTION, PolicyOptions(backbone)).requires_grad_(True)
    data = packed()

    def update() -> None:
        policy.zero_grad()
        policy(data)[0].square().mean().backward()

    found = {
        "update": update,
        "own step": many(stepper(OwnStep(policy), 1)),
        "Actor": many(stepper(Actor(policy), 1)),
    }
    for call in found.values():
        call()
    return found


def packed() -> SimpleNamespace:
    """A row of two episodes."""
    import torch

    time = torch.arange(STEPS)[None] % (STEPS // 2)
    return SimpleNamespace(
        observation=torch.randn(1, STEPS, 11),
        previous_action=torch.rand(1, STEPS, 3) * 2 - 1,
        return_to_go=torch.rand(1, STEPS) * 3600,
        timestep=time,
        start=time == 0,
        valid=torch.ones_like(time, dtype=torch.bool),
    )


def many(step: Callable[[], object], count: int = 20) -> Callable[[], object]:
    """Several steps, which the clock can tell."""
    return lambda: [step() for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--now", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with checked_out(given.commit) as before, checked_out(given.now) as now:
        workers = {"before": Worker(before), "now": Worker(now)}
        print(f"| backbone | update | own step | Actor | (ms now) |\n{'|---' * 5}|", flush=True)
        for name in given.names:
            times: dict[str, list] = {side: [] for side in workers}
            for _ in range(given.rounds):
                for side, worker in workers.items():
                    times[side].append(worker.ask(name, 3))
            print(row(name, times), flush=True)


def row(name: str, times: dict[str, list]) -> str:
    medians = {
        side: {kind: np.median([each[kind] for each in rounds]) for kind in rounds[0]}
        for side, rounds in times.items()
    }
    now, ratios = medians["now"], []
    for kind, value in now.items():
        ratios.append(f"{medians['before'][kind] / value:.2f}")
    count = [1, 20, 20]
    milliseconds = ", ".join(f"{1e3 * v / n:.3g}" for v, n in zip(now.values(), count, strict=True))
    return f"| `{name}` | {' | '.join(ratios)} | {milliseconds} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        if sys.argv[2:]:
            sys.path.insert(0, sys.argv[2])
        work()
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        main()
