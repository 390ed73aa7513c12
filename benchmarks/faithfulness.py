"""Which maps are true: methods × backbones, as Markdown tables, from trained runs.

    python benchmarks/faithfulness.py RUN RUN … --rows ROWS.csv [--probes lrp] [--minutes 8]
    python benchmarks/faithfulness.py --rows ONE.csv ANOTHER.csv …       the tables of what is there

Episodes are played with each run's best policy; queries are spread over them, targets in turn. A
row is what one order of the cells of one query scores (agents/probes/faithfulness.py), added to the
first file as it is measured, so that a run that is stopped has what it has. On every second query
the same methods also explain two networks of shuffled weights. Intervals: 95%, over queries.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import csv_rows
import numpy as np
import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import PROBES, AttributionProbe, Table, make_probe, targets_of
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.explain import EPISODES, spread_queries
from decision_s4.agents.probes.faithfulness import (
    GRADIENT,
    RANDOM,
    Faithfulness,
    Judge,
    interval,
)
from decision_s4.agents.probes.recordings import play
from decision_s4.envs.errors import UserError

Cell = Callable[[Faithfulness, str], str]
GAINS: dict[str, Cell] = {
    "deletion AUC beats a random order by": lambda f, m: signed(f.beats(m, RANDOM)),
    "deletion AUC beats the plain gradient by": lambda f, m: signed(f.beats(m, GRADIENT)),
    "deletion AUC beats the method's own map of shuffled weights by": lambda f, m: signed(
        f.beats_shuffled(m)
    ),
    "rank correlation of sizes with the map of shuffled weights, above that of two such maps": (
        lambda f, m: signed(f.above_floor(m), 2)
    ),
}


def signed(values: tuple[float, ...], digits: int = 3) -> str:
    return interval(values, True, digits)


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


def measure(run: Path, names: list[str], queries: int, minutes: float, seed: int) -> Iterator[dict]:
    """Rows of one run, query by query in an order drawn at random, until the time is over."""
    until = time.monotonic() + 60 * minutes
    found = checkpoint.load(run, "best")
    policy, task = saved.rebuild(found), saved.task(found)
    recordings = play(policy, task, EPISODES, seed)
    contexts = spread_queries(policy, recordings, targets_of(policy), queries)
    judge = Judge(probes_for(policy, names))
    returned = np.mean([float(each.reward.sum()) for each in recordings[:EPISODES]])
    about = {
        "env": task.env_id,
        "backbone": policy.options.backbone,
        "step": found.step,
        "return": round(returned, 1),
    }
    order = np.random.default_rng(seed).permutation(queries)
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
    """Of each environment: what was judged, then methods × backbones for each of GAINS."""
    key = lambda row: (row["env"], row["backbone"])  # noqa: E731
    groups = [(k, list(g)) for k, g in itertools.groupby(sorted(rows, key=key), key)]
    for env in dict.fromkeys(env for (env, _), _ in groups):
        found = {name: judged(g) for (e, name), g in groups if e == env}
        first = {name: g[0] for (e, name), g in groups if e == env}
        print(f"\n### {env}\n")
        show(_judged(found, first))
        for title, cell in GAINS.items():
            print(f"\n{title[0].upper()}{title[1:]}:\n")
            show(_gains(found, cell))


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


def _gains(found: dict[str, Faithfulness], cell: Cell) -> Table:
    """Methods by their mean place over the backbones."""
    methods = {method for each in found.values() for method in each.methods}

    def place(method: str) -> float:
        there = [each.methods for each in found.values() if method in each.methods]
        return float(np.mean([names.index(method) for names in there]))

    rows = [
        [m, *(cell(each, m) if m in each.methods else "" for each in found.values())]
        for m in sorted(methods, key=place)
    ]
    return Table("", ["", *found], rows)


def show(table: Table) -> None:
    """As Markdown."""
    for row in [table.columns, ["---"] * len(table.columns), *table.rows]:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--rows", nargs="+", type=Path, default=[Path("faithfulness.csv")])
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=1e9, help="for each run")
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        names = given.probes.split(",")
        for row in measure(run, names, given.queries, given.minutes, given.seed):
            csv_rows.append(given.rows[0], [row])
    tables([row for path in given.rows for row in csv_rows.read(path)])


if __name__ == "__main__":
    main()
