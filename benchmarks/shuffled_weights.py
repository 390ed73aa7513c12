"""What maps owe to each layer's weights, as Markdown tables: `… shuffled_weights.py RUN RUN …`

The cascading check of Adebayo et al. (arXiv 1810.03292): the weights are shuffled from the head
down, and each method's map is compared with the true one's: rank correlation with signs, and of
sizes alone, means over queries. "floor" is the correlation of sizes of two networks of shuffled
weights: what layers and inputs make alike whatever was learned. Each query has its own.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from faithfulness import probes_for

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.probes.base import PROBES, AttributionProbe, targets_of
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.explain import EPISODES, spread_queries
from decision_s4.agents.probes.recordings import play
from decision_s4.agents.probes.sanity import cascade, rank_correlation, shuffled_weights

Kept = dict[str, tuple[float, float]]
"""By stage: correlation with signs, and of sizes."""


def kept(probe: AttributionProbe, context: Context, seed: int) -> Kept:
    """How much of one map each stage of the cascade leaves, and the floor."""

    def map_of(there: Context) -> torch.Tensor:
        return probe.attribute(there).values

    def alike(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
        return rank_correlation(a, b), rank_correlation(a.abs(), b.abs())

    true = map_of(context)
    found, last = {}, true
    for stage, policy in cascade(context.policy, seed):
        last = map_of(context.to_policy(policy))
        found[stage] = alike(true, last)
    other = map_of(context.to_policy(shuffled_weights(context.policy, seed + 1)))
    return found | {"floor": alike(last, other)}


def cell(values: list[tuple[float, float]]) -> str:
    signs, sizes = np.nanmean(np.array(values), 0)
    return f"{signs:+.2f}, {sizes:+.2f}"


def report(run: Path, names: list[str], queries: int, seed: int) -> None:
    """The table of one run."""
    found = checkpoint.load(run, "best")
    policy, task = saved.rebuild(found), saved.task(found)
    recordings = play(policy, task, EPISODES, seed)
    contexts = spread_queries(policy, recordings, targets_of(policy), queries)
    print(f"\n{task.env_id}, {policy.options.backbone}, {queries} queries (with signs, sizes):\n")
    for number, probe in enumerate(probes_for(policy, names)):
        each = [kept(probe, context, 2 * i) for i, context in enumerate(contexts)]
        if not number:
            print(f"| shuffled down to | {' | '.join(each[0])} |\n{'|---' * (1 + len(each[0]))}|")
        cells = [cell([one[stage] for one in each]) for stage in each[0]]
        print(f"| {probe.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        report(run, given.probes.split(","), given.queries, given.seed)


if __name__ == "__main__":
    main()
