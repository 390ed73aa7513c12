"""What marks cost while no probe reads, as a Markdown table: `python benchmarks/marks.py [s4 …]`

tests/agents/backbones/test_marks.py holds that a mark asks torch for nothing. What is left is the
call itself, and the look-up whether a probe reads. Timed beside each other, whole updates differ by
what the machine does otherwise, so here all marks of an update (a policy of the default sizes over
one packed row of two episodes) and of a step (one row, the policy's own operations) are counted,
and each kind is timed alone, many times over, beside the function that it names. Process time.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timing import machine
from torch.nn import functional as F
from versions import calls

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import BACKBONES

X = torch.zeros(1)
NORM = ops.LayerNorm(1).requires_grad_(False)
KINDS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "is_open": (lambda: ops.is_open(), lambda: None),
    "has_stand_in": (lambda: ops.has_stand_in(), lambda: None),
    "scope": (lambda: ops.scope("blocks", 0), lambda: None),
    "tap": (lambda: ops.tap("x", X), lambda: X),
    "coefficient": (lambda: ops.coefficient("x", X), lambda: X),
    "value": (lambda: ops.value(X, 2), lambda: X),
    "act": (lambda: ops.act(X, "relu"), lambda: F.relu(X)),
    "norm": (lambda: ops.norm(X, NORM), lambda: F.layer_norm(X, (1,), NORM.weight, NORM.bias)),
    "gate": (lambda: ops.gate(X, X), lambda: X * X),
    "function": (lambda: ops.function(ops.Asked("rsqrt"), X), lambda: torch.rsqrt(X)),
}
"""By kind of mark: a call, and what would stand there without it."""


def microseconds(call: Callable[[], object], count: int) -> float:
    """Of one call, over a turn of `count`."""
    begin = time.process_time()
    for _ in range(count):
        call()
    return 1e6 * (time.process_time() - begin) / count


def extra(mark: Callable[[], object], plain: Callable[[], object], repeats: int = 101) -> float:
    """What a mark takes more, in microseconds: the median over turns beside each other."""
    turns = [microseconds(mark, 1000) - microseconds(plain, 1000) for _ in range(repeats)]
    return float(np.median(turns))


@contextmanager
def counted() -> Iterator[Counter]:
    """Counts calls of each kind."""
    counts: Counter[str] = Counter()
    kept = {kind: getattr(ops, kind) for kind in KINDS}

    def counting(kind: str) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            counts[kind] += 1
            return kept[kind](*arguments, **named)

        return call

    for kind in KINDS:
        setattr(ops, kind, counting(kind))
    try:
        yield counts
    finally:
        for kind, function in kept.items():
            setattr(ops, kind, function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=sorted(BACKBONES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    cost = {kind: extra(*calls_of) for kind, calls_of in KINDS.items()}
    print(f"{machine()}\n\nµs a call: {', '.join(f'{k} {v:.2f}' for k, v in cost.items())}\n")
    print("| backbone | marks of an update | µs | of it | marks of a step | µs | of it |")
    print("|---|---|---|---|---|---|---|")
    for name in given.names:
        cells = []
        for kind, count in {"update": 1, "own step": 20}.items():
            call = calls(name)[kind]
            with counted() as counts:
                call()
            marks = sum(cost[each] * times for each, times in counts.items()) / count
            whole = float(np.median([microseconds(call, 1) for _ in range(9)])) / count
            cells += [str(counts.total() // count), f"{marks:.0f}", f"{marks / whole:.2%}"]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
