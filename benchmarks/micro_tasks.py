"""What each backbone can and cannot do, on five tasks that take seconds (benchmarks/symbols.py).

    python benchmarks/micro_tasks.py --names mamba --seeds 0     ten minutes a backbone and seed
    python benchmarks/micro_tasks.py --names deltanet,beta_max=2 gru
    python benchmarks/micro_tasks.py --processes 16              all of them
    python benchmarks/micro_tasks.py --device cuda               an update a launch: quicker
    python benchmarks/micro_tasks.py --processes 0               only the table of what is there
    python benchmarks/micro_tasks.py --results one.csv more.csv  of several files; new rows: first

Each run trains two blocks of width 64 with MLPs, one learning rate for all, on STEPS steps, until
999 of 1000 answers are right or `--updates` are over, and is then asked 256 new rows of that length
and 256 four times as long. A window covers all of a sequence. Runs in --results are not made again.
The table, Markdown, has the share of right answers in percent, "at length / four times as long",
the median over seeds; the last column says how many seeds a task has.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import csv_rows
import torch
from csv_rows import Row
from interleaved import OwnRandom, finished, interleaved
from recorded_reader import RecordedUpdates, rates
from symbols import NONE, TASKS, Task
from torch import Tensor, nn

from decision_s4.agents.backbones import BACKBONES, make_backbone
from decision_s4.agents.backbones.base import MEMORYLESS, family_of, parse_options
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

ROOT = Path(__file__).parents[1]
TURNING = [f"{name},beta_max=2" for name in ("deltanet", "gated-deltanet", "kda")]
"""The delta rule with eigenvalues down to −1."""
NAMES = [*sorted([*BACKBONES, *TURNING]), *sorted(MEMORYLESS)]
ENOUGH = 0.999
ROUND = 100  # updates between two looks at what is right
RATE = 3e-3
WIDTH, LAYERS, ROWS, STEPS, LONGER = 64, 2, 32, 48, 4
FIELDS = ("name", "task", "seed", "updates", "right", "right_longer", "seconds")


class Reader(nn.Module):
    """Symbols (B, T) -> logits of the answers (B, T, A)."""

    def __init__(self, name: str, task: Task):
        super().__init__()
        self.embed = nn.Embedding(task.symbols, WIDTH)
        name, *pairs = name.split(",")
        chosen: dict[str, Any] = options(name) | parse_options(pairs)
        self.backbone = make_backbone(name, WIDTH, LAYERS, mlp_ratio=2.0, **chosen)
        self.read_out = nn.Linear(WIDTH, task.answers)

    def forward(self, symbols: Tensor, packing: Packing | None = None) -> Tensor:
        return self.read_out(self.backbone(self.embed(symbols), packing=packing)[0])

    @property
    def device(self) -> torch.device:
        return self.read_out.weight.device


def options(name: str) -> dict[str, object]:
    """Those that a backbone is given: windows that cover the longest sequence, trained poles."""
    wanted = {"window": LONGER * STEPS, "full_window": LONGER * STEPS, "train_ssm": True}
    fields = {field.name for field in dataclasses.fields(family_of(name).Options)}
    if name == "hybrid":
        fields |= {"full_window"}
    return {key: value for key, value in wanted.items() if key in fields}


def run(name: str, task: str, seed: int, updates: int, device: str, recorded: bool = True) -> Row:
    """Train and ask: a row of the results."""
    return finished(training(name, task, seed, updates, device, recorded))


def training(
    name: str, task: str, seed: int, updates: int, device: str, recorded: bool = True
) -> Generator[None, None, Row]:
    """As `run`, with a pause after each update on CUDA."""
    torch.set_num_threads(1)
    begin, random = time.perf_counter(), OwnRandom(seed)
    kind = TASKS[task]._replace(draw=functools.partial(random, TASKS[task].draw))
    reader = random(Reader, name, kind).to(device)
    if reader.device.type == "cuda":
        done = yield from train_recorded(reader, kind, updates, recorded)
    else:
        done = train(reader, kind, updates)
    right = [share_right(reader, kind, STEPS * by) for by in (1, LONGER)]
    values = (name, task, seed, done, *right, round(time.perf_counter() - begin, 1))
    return dict(zip(FIELDS, map(str, values), strict=True))


def train(reader: Reader, kind: Task, updates: int) -> int:
    """Until ENOUGH is right or `updates` are over; how many there were."""
    optimiser, schedule = optimiser_of(reader.parameters(), updates)
    done = 0
    while done < updates and (done % ROUND or share_right(reader, kind, STEPS) < ENOUGH):
        optimiser.zero_grad()
        loss_of(reader, *kind.draw(ROWS, STEPS)).backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        done += 1
    return done


def train_recorded(
    reader: Reader, kind: Task, updates: int, recorded: bool = True
) -> Generator[None, None, int]:
    """As `train`, on the same batches, an update a launch where that is possible, then a pause."""
    table = rates(updates, optimiser_of, reader.device)
    packing = Packing.unbroken(ROWS, STEPS, reader.device)
    loss = functools.partial(loss_of, reader, packing=packing)
    steps = RecordedUpdates(loss, list(reader.parameters()), table, recorded)
    while steps.done < updates and share_right(reader, kind, STEPS) < ENOUGH:
        batches = [kind.draw(ROWS, STEPS) for _ in range(min(ROUND, updates - steps.done))]
        on_device = (torch.stack(part).to(reader.device) for part in zip(*batches, strict=True))
        for x, y in zip(*on_device, strict=True):
            steps.update(x, y)
            yield
    return steps.done


def optimiser_of(parameters: Iterable[nn.Parameter], updates: int) -> tuple[Any, Any]:
    """Adam and its schedule."""
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, updates, pct_start=0.1)
    return optimiser, schedule


def loss_of(reader: Reader, x: Tensor, y: Tensor, packing: Packing | None = None) -> Tensor:
    logits = reader(x, packing)
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


@torch.no_grad()
def share_right(reader: Reader, task: Task, steps: int, rows: int = 256) -> float:
    x, y = task.draw(rows, steps)
    found = reader(x.to(reader.device)).argmax(-1).cpu()
    return float((found == y)[y != NONE].float().mean())


def fill(given: argparse.Namespace) -> None:
    """Make the runs that are missing, the first seed of all before the second."""
    known = {(row["name"], row["task"], row["seed"]) for row in rows_of(given.results)}
    wanted = [(n, t, s) for s in given.seeds for n in given.names for t in given.tasks]
    wanted = [each for each in wanted if (*each[:2], str(each[2])) not in known]
    given.results[0].parent.mkdir(parents=True, exist_ok=True)
    deadline = math.inf if given.minutes is None else time.time() + 60 * given.minutes
    rest = (given.updates, given.device, given.recorded)
    if given.together > 1:
        begun = (training(*each, *rest) for each in wanted if time.time() < deadline)
        cuda = torch.device(given.device).type == "cuda"
        for row in interleaved(begun, given.together, cuda):
            csv_rows.append(given.results[0], [row])
        return
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        runs = [pool.submit(in_time, deadline, *each, *rest) for each in wanted]
        for done in as_completed(runs):
            found = done.result()
            if found is not None:
                csv_rows.append(given.results[0], [found])


def in_time(deadline: float, *args: Any) -> Row | None:
    """`run`, unless it is too late to begin."""
    return run(*args) if time.time() < deadline else None


def rows_of(paths: list[Path]) -> list[Row]:
    """Those of all files that are there."""
    return [row for path in paths for row in csv_rows.read(path)]


def table(rows: list[Row], names: list[str], tasks: list[str]) -> Iterator[str]:
    """Markdown, a backbone a line."""
    yield f"| backbone | {' | '.join(tasks)} | seeds |"
    yield "|---" * (len(tasks) + 2) + "|"
    for name in names:
        own = [row for row in rows if row["name"] == name]
        if own:
            by_task = [[row for row in own if row["task"] == task] for task in tasks]
            counts = sorted({len({row["seed"] for row in each}) for each in by_task})
            seeds = " to ".join(map(str, counts if len(counts) == 1 else (counts[0], counts[-1])))
            yield f"| {name} | {' | '.join(map(cell, by_task))} | {seeds} |"


def cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    shares = (statistics.median(float(row[key]) for row in rows) for key in FIELDS[4:6])
    return " / ".join(f"{100 * share:.0f}" for share in shares)


def known(name: str) -> str:
    """For argparse: a backbone, perhaps with options, that can be made."""
    try:
        Reader(name, TASKS["parity"])
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="*", default=NAMES, type=known, help="NAME[,option=value]")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--together", type=int, default=1, help="runs of one process, on CUDA")
    parser.add_argument("--minutes", type=float, help="begin no run after these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recorded", action=argparse.BooleanOptionalAction, default=True)
    default = [ROOT / "runs/micro-tasks.csv"]
    parser.add_argument("--results", type=Path, nargs="+", default=default, metavar="CSV")
    given = parser.parse_args()
    if given.processes:
        fill(given)
    print("\n".join(table(rows_of(given.results), given.names, given.tasks)))


if __name__ == "__main__":
    main()
