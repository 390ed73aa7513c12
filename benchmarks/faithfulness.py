"""Which maps are true: methods × backbones, as Markdown tables, from trained runs.

    python benchmarks/faithfulness.py RUN RUN … [--probes gradient-x-input,occlusion,lrp]

Episodes are played with each run's best policy; queries are spread over them, targets in turn.
Each table is that of agents/probes/faithfulness.py: deletion AUC and others beside
a random order and the plain gradient on the same queries and masks, with 95%
bootstrap intervals over queries.
"""

import argparse
from pathlib import Path

import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import PROBES, AttributionProbe, make_probe, targets_of
from decision_s4.agents.probes.explain import EPISODES, spread_queries
from decision_s4.agents.probes.faithfulness import faithfulness
from decision_s4.agents.probes.recordings import play
from decision_s4.envs.errors import UserError


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


def report(run: Path, names: list[str], queries: int, seed: int) -> None:
    """The table of one run."""
    found = checkpoint.load(run, "best")
    policy, task = saved.rebuild(found), saved.task(found)
    recordings = play(policy, task, EPISODES, seed)
    contexts = spread_queries(policy, recordings, targets_of(policy), queries)
    table = faithfulness(probes_for(policy, names), contexts, seed).table()
    print(f"\n{task.env_id}, {policy.options.backbone} (step {found.step}). {table.title}\n")
    for row in [table.columns, ["---"] * len(table.columns), *table.rows]:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for run in given.runs:
        report(run, given.probes.split(","), given.queries, given.seed)


if __name__ == "__main__":
    main()
