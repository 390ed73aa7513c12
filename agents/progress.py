"""How far a run is: a rich bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from decision_s4.agents.eval_table import shown

BAR_WIDTH = 10  # what the values leave of 80 columns
SHORTEST, LONGEST, SHARE = 10.0, 60.0, 0.01  # a plain line: seconds between two, part of the run


QUIET = 20.0  # seconds after which somebody wonders


class ProgressReport:
    """Shows step, named values such as loss and score, steps a second and the time left."""

    def __init__(self, total_steps: int, step: int, console: Console) -> None:
        self.console, self.total = console, total_steps
        columns = (
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(BAR_WIDTH),
            _Values(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=total_steps, completed=step, values={})
        self.printed_at, self.printed_step = -LONGEST, step
        if console.is_terminal:
            self.bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Move to `step`; values named earlier stay until named again."""
        task = self.bar.tasks[0]
        self.bar.update(self.task, completed=step, values=task.fields["values"] | dict(values))
        if not self.console.is_terminal and self._due(step):
            self.printed_at, self.printed_step = time.monotonic(), step
            line = f"step {step}/{task.total:.0f}  {describe(task)}"
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _due(self, step: int) -> bool:
        total = self.total
        waited, part = time.monotonic() - self.printed_at, (step - self.printed_step) / total
        last = step >= total > self.printed_step
        return last or waited >= LONGEST or (waited >= SHORTEST and part >= SHARE)

    def close(self) -> None:
        if self.console.is_terminal:  # elsewhere older releases of rich print an empty line
            self.bar.stop()


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str], None]]:
    """What says lines of work that takes minutes. One that ends with "…" passes: on a terminal it
    stands beside a spinner, elsewhere it is printed where nothing was for a while."""
    printed_at = time.monotonic()

    with console.status("…") as status:

        def say(line: str) -> None:
            nonlocal printed_at
            status.update(line)
            passes = line.endswith("…")
            waited = time.monotonic() - printed_at
            if not passes or (waited >= QUIET and not console.is_terminal):
                console.print(line, soft_wrap=True, markup=False, highlight=False)
                printed_at = time.monotonic()

        yield say


class _Values(ProgressColumn):
    """All but the values that are rates: the bar's own rate is enough where room is scarce."""

    def render(self, task: Task) -> Text:
        return Text(describe(task, rates=False))


def describe(task: Task, rates: bool = True) -> str:
    """`loss 0.25  score 51.2  412 steps/s  1:02:03 left` of a rich task, as far as known."""
    values = task.fields["values"].items()
    parts = [f"{name} {shown(x)}" for name, x in values if rates or not name.endswith("/s")]
    if task.speed:
        parts.append(f"{shown(task.speed)} steps/s")
    if task.time_remaining:  # nothing is left at the end, and nothing is said
        parts.append(f"{timedelta(seconds=task.time_remaining)} left")
    return "  ".join(parts)
