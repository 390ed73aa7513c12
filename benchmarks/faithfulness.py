"""Which maps are true: methods × backbones, as Markdown tables, from trained runs.

    python benchmarks/faithfulness.py RUN RUN … --rows ROWS.csv [--probes lrp] [--minutes 8]
    python benchmarks/faithfulness.py RUN --rows ONE.csv --part 0 2      half of a run's queries
    python benchmarks/faithfulness.py --rows ONE.csv ANOTHER.csv …       the tables of what is there
    python benchmarks/faithfulness.py --rows *.csv --join ALL.csv.gz     and all rows in one file

Episodes are played with each run's best policy; queries are spread over them, targets in turn. A
row is what one order of the cells of one query scores (agents/probes/faithfulness.py), added to the
first file as it is measured, so that a run that is stopped has what it has. On every second query
the same methods also explain two networks of shuffled weights. Intervals: 95%, over queries.
"""

import argparse
import csv
import gzip
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import csv_rows
import numpy as np
import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import PROBES, AttributionProbe, Table, make_probe, targets_of
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.explain import EPISODES, spread_queries
from decision_s4.agents.probes.faithfulness import (
    FLOOR,
    GRADIENT,
    KEPT,
    RANDOM,
    SIGNED,
    Faithfulness,
    Judge,
    interval,
)
from decision_s4.agents.probes.recordings import play
from decision_s4.envs.errors import UserError

Gain = Callable[[Faithfulness, str], tuple[float, float, float]]
GAINS: dict[str, Gain] = {
    "Deletion AUC beats a random order by": lambda f, m: f.beats(m, RANDOM),
    "Deletion AUC beats the plain gradient by": lambda f, m: f.beats(m, GRADIENT),
    "Deletion AUC beats the method's own map of shuffled weights by": Faithfulness.beats_shuffled,
}
KEPT_TITLE = "Rank correlation with the map of shuffled weights: with signs; of sizes; the floor"


def probes_for(policy: Policy, names: list[str]) -> list[AttributionProbe]:
    """Those that explain one answer and serve the policy; says which do not."""
    found = []
    for probe in map(make_probe, names):
        try:
            probe.check(policy)
        except UserError as error:
            print(f"left out: {error}")
            continue
        if isinstance(probe, AttributionProbe):
            found.append(probe)
    return found


def measure(
    run: Path, names: list[str], queries: int, minutes: float, seed: int, part: tuple[int, int]
) -> Iterator[dict]:
    """Rows of one run, query by query in an order drawn at random, until the time is over.

    Of `part` (i, n), each n-th query of that order from the i-th on.
    """
    until = time.monotonic() + 60 * minutes
    found = checkpoint.load(run, "best")
    policy, task = saved.rebuild(found), saved.task(found)
    assert isinstance(policy, Policy), "a policy that aims at a return"
    recordings = play(policy, task, EPISODES, seed)
    contexts = spread_queries(policy, recordings, targets_of(policy), queries)
    judge = Judge(probes_for(policy, names))
    returns = np.array([float(each.reward.sum()) for each in recordings])
    means = returns.reshape(-1, EPISODES).mean(1)  # one for each target
    about = {
        "env": task.env_id,
        "backbone": policy.options.backbone,
        "step": found.step,
        "return": ", ".join(f"{mean:.0f}" for mean in means),
    }
    order = np.random.default_rng(seed).permutation(queries)[part[0] :: part[1]]
    for count, query in enumerate(order.tolist()):
        if time.monotonic() > until:
            break
        yield from rows_of(judge, contexts[query], about | {"query": query}, seed, count % 2 == 0)


def rows_of(
    judge: Judge, context: Context, about: dict, seed: int, weights: bool
) -> Iterator[dict]:
    """A row an order."""
    nothing = dict.fromkeys(Faithfulness.MEASURES, "")
    for order, scores in judge.scores(context, seed + about["query"], weights).items():
        yield about | {"order": order} | nothing | scores


def judged(rows: Sequence[csv_rows.Row]) -> Faithfulness:
    """Those of one run again, of the queries that have every order."""
    queries: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        scores = {name: float(row[name]) for name in Faithfulness.MEASURES if row[name]}
        queries.setdefault(row["query"], {})[row["order"]] = scores
    most = max(map(len, queries.values()))
    return Faithfulness.over([query for query in queries.values() if len(query) == most])


def tables(rows: Sequence[csv_rows.Row]) -> None:
    """Over all policies, then of each environment: what was judged, and GAINS."""
    key = lambda row: (row["env"], row["backbone"])  # noqa: E731
    groups = {k: list(g) for k, g in itertools.groupby(sorted(rows, key=key), key)}
    found = {k: judged(g) for k, g in groups.items()}
    print(f"Policies in which a method beats its controls for certain, of {len(found)}:\n")
    show(_certain(list(found.values())))
    for env in dict.fromkeys(env for env, _ in groups):
        here = {name: each for (e, name), each in found.items() if e == env}
        print(f"\n## {env}\n")
        show(_judged(here, {name: groups[env, name][0] for name in here}))
        for title, gain in GAINS.items():
            print(f"\n{title}:\n")
            show(_by_method(here, partial(_bold_gain, gain)))
        print(f"\n{KEPT_TITLE}:\n")
        show(_by_method(here, _kept))


def _bold_gain(gain: Callable[..., Any], each: Faithfulness, method: str) -> str:
    return bold(gain(each, method))


def bold(values: tuple[float, float, float]) -> str:
    """A mean and its interval in two digits, the mean bold where all of the interval is above 0."""
    mean, low, high = (f"{x:+.2f}".replace("0.", ".") for x in values)
    return f"{f'**{mean}**' if values[1] > 0 else mean} [{low}, {high}]"


def _kept(each: Faithfulness, method: str) -> str:
    means = (each.mean(method, name)[0] for name in (SIGNED, KEPT, FLOOR))
    return "; ".join(f"{x:+.2f}".replace("0.", ".") for x in means)


def _certain(found: Sequence[Faithfulness]) -> Table:
    """For each method, in how many policies all of a gain's interval is above 0, and its mean."""
    rows = []
    for method in _order(found):
        there = [each for each in found if method in each.methods]
        cells = []
        for gain in GAINS.values():
            gains = [gain(each, method) for each in there]
            mean = np.nanmean([values[0] for values in gains])
            cells.append(f"{sum(values[1] > 0 for values in gains)} ({mean:+.3f})")
        rows.append([method, *cells])
    return Table("", ["", "random order", "plain gradient", "own map of shuffled weights"], rows)


def _judged(found: dict[str, Faithfulness], first: dict[str, csv_rows.Row]) -> Table:
    rows = [
        [
            name,
            first[name]["step"],
            first[name]["return"],
            str(len(each.scores[RANDOM]["deletion"])),
            interval(each.mean(RANDOM)),
            interval(each.mean(GRADIENT)),
        ]
        for name, each in found.items()
    ]
    columns = ["policy", "updates", "return", "queries", "random order", "plain gradient"]
    return Table("", columns, rows)


def _by_method(found: dict[str, Faithfulness], cell: Callable[[Faithfulness, str], str]) -> Table:
    """A row a policy, a column a method."""
    methods = _order(list(found.values()))
    rows = [
        [name, *(cell(each, m) if m in each.methods else "" for m in methods)]
        for name, each in found.items()
    ]
    return Table("", ["", *methods], rows)


def _order(found: Sequence[Faithfulness]) -> list[str]:
    """All methods, by their mean place."""

    def place(method: str) -> tuple[float, str]:
        there = [each.methods for each in found if method in each.methods]
        return float(np.mean([names.index(method) for names in there])), method

    return sorted({method for each in found for method in each.methods}, key=place)


def show(table: Table) -> None:
    """As Markdown."""
    for row in [table.columns, ["---"] * len(table.columns), *table.rows]:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def join(rows: Sequence[csv_rows.Row], path: Path) -> None:
    """All rows in one file, scores to four digits."""
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            short = {m: f"{float(row[m]):.4g}" for m in Faithfulness.MEASURES if row[m]}
            writer.writerow(row | short)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--rows", nargs="+", type=Path, default=[Path("faithfulness.csv")])
    parser.add_argument("--join", type=Path, help="also write all rows to this .csv.gz")
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=1e9, help="for each run")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), metavar=("I", "N"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        names = given.probes.split(",")
        options = names, given.queries, given.minutes, given.seed, tuple(given.part)
        for row in measure(run, *options):
            csv_rows.append(given.rows[0], [row])
    rows = [row for path in given.rows for row in csv_rows.read(path)]
    tables(rows)
    if given.join:
        join(rows, given.join)


if __name__ == "__main__":
    main()
