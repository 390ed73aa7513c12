"""What maps owe to each layer's weights, as Markdown tables: `… shuffled_weights.py RUN RUN …`

The cascading check of Adebayo et al. (arXiv 1810.03292): the weights are shuffled from the head
down, and each method's map is compared with the true one's, by rank correlation. Three columns a
stage, means over queries: with signs; of sizes alone; and of sizes beyond what NETWORKS others of
shuffled weights say of the same query on average. These share what layers and inputs make alike
whatever was learned: the decay over time, the size of an input. A check that does not take it out
finds that all maps that decay are alike. "floor" is the same of two networks of shuffled weights:
as the others are few, they leave some of it. A map is destroyed where it keeps no more than that.
"theirs" is how much of the true map's order is the others' (the squared rank correlation): what is
left is all that the policy's own weights can have said.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from faithfulness import probes_for

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import PROBES, AttributionProbe, targets_of
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.explain import EPISODES, spread_queries
from decision_s4.agents.probes.recordings import play
from decision_s4.agents.probes.sanity import (
    cascade,
    mean_ranks,
    partial_rank_correlation,
    rank_correlation,
    shuffled_weights,
)
from decision_s4.envs.statistics import bootstrap_interval

NETWORKS = 8
Kept = dict[str, tuple[float, ...]]
"""By stage: correlation with signs, of sizes, of sizes beyond the others; and "theirs"."""


def kept(probe: AttributionProbe, context: Context, seed: int) -> Kept:
    """How much of one map each stage of the cascade leaves."""

    def map_of(policy: Policy) -> torch.Tensor:
        return probe.attribute(context.to_policy(policy)).values

    def alike(a: torch.Tensor, b: torch.Tensor) -> tuple[float, ...]:
        sizes = a.abs(), b.abs()
        beyond = partial_rank_correlation(*sizes, common)
        return rank_correlation(a, b), rank_correlation(*sizes), beyond

    true = probe.attribute(context).values
    found: dict[str, tuple[float, ...]] = {}
    seeds = range(seed + 1, seed + 2 + NETWORKS)
    *others, another = (map_of(shuffled_weights(context.policy, i)) for i in seeds)
    common = mean_ranks([other.abs() for other in others])
    for stage, policy in cascade(context.policy, seed):
        last = map_of(policy)  # in the end, of shuffled weights alone
        found[stage] = alike(true, last)
    found["floor"] = alike(last, another)
    return found | {"theirs": (rank_correlation(true.abs(), common) ** 2,)}


def cell(values: list[tuple[float, ...]]) -> str:
    """Means, the last with its interval."""
    *means, last = np.array(values).T
    text = [f"{np.nanmean(each):+.2f}" for each in means]
    known = last[np.isfinite(last)]
    if not len(known):
        return ", ".join([*text, "–"])
    low, high = bootstrap_interval(known)
    return ", ".join([*text, f"{known.mean():+.2f} [{low:+.2f}, {high:+.2f}]"])


def report(run: Path, names: list[str], queries: int, seed: int) -> None:
    """The table of one run."""
    found = checkpoint.load(run, "best")
    policy, task = saved.rebuild(found), saved.task(found)
    assert isinstance(policy, Policy), "a policy that aims at a return"
    recordings = play(policy, task, EPISODES, seed)
    contexts = spread_queries(policy, recordings, targets_of(policy), queries)
    about = f"{task.env_id}, {policy.options.backbone}, {queries} queries"
    print(f"\n{about} (with signs, sizes, beyond the others'):\n")
    for number, probe in enumerate(probes_for(policy, names)):
        each = [kept(probe, context, (2 + NETWORKS) * i) for i, context in enumerate(contexts)]
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
