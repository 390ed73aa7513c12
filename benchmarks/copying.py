"""Do maps see what a policy must remember, and lose it with the weights? As Markdown tables.

    python benchmarks/copying.py s4 mamba … --rows ROWS.csv [--seeds 3] [--minutes 8]
    python benchmarks/copying.py --rows ONE.csv ANOTHER.csv …            the tables of what is there

Small policies of each backbone learn to answer with the observation of LAG steps ago. Observations
are independent from step to step: the step to see is known, and no other will do. A map sees it
where, of the steps before the present one, that one weighs most; chance is one in STEPS − 1. Each
method maps the same queries for networks of shuffled weights, another one for each query. A row of
the file is a method on one policy; shares are over its queries, intervals over all of a backbone.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import csv_rows
import numpy as np
import torch
from faithfulness import probes_for
from gymnasium import spaces

from decision_s4.agents.backbones.base import BACKBONES
from decision_s4.agents.policies import make_policy
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.probes.base import PROBES, AttributionProbe, Target
from decision_s4.agents.probes.context import Context, make_context
from decision_s4.agents.probes.recordings import Recording, made
from decision_s4.agents.probes.sanity import shuffled_weights

LAG, STEPS, ROWS = 5, 16, 64
UPDATES, LEARNED = 3000, 0.1
"""At most; and the squared error that is enough, of a variance of 1."""
OBSERVATION, ACTION = (spaces.Box(-np.inf, np.inf, (size,)) for size in (3, 2))
SHARES = ("true", "shuffled")


def trained(backbone: str, seed: int) -> tuple[Policy, int, float]:
    """A policy whose actions are the first two observations of LAG steps ago, how many updates it
    had, and its error."""
    torch.manual_seed(seed)
    options = PolicyOptions(backbone, d_model=32, n_layers=2, d_embed=16)
    policy = make_policy(OBSERVATION, ACTION, options).requires_grad_(True)
    optimiser = torch.optim.Adam(policy.parameters(), lr=5e-3)
    draw, error, updates = torch.Generator().manual_seed(seed), 1.0, 0
    while error >= LEARNED and updates < UPDATES:
        batch = episodes(draw)
        answers = policy.head.act(policy(batch)[0])
        loss = (answers[:, LAG:] - batch.observation[:, :-LAG, :2]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        error, updates = error + 0.1 * (loss.item() - error), updates + 1
    return policy.requires_grad_(False).eval(), updates, error


def episodes(draw: torch.Generator) -> SimpleNamespace:
    """ROWS of them, one a row."""
    step = torch.arange(STEPS).expand(ROWS, -1)
    return SimpleNamespace(
        observation=torch.randn(ROWS, STEPS, 3, generator=draw),
        previous_action=torch.zeros(ROWS, STEPS, 2),
        return_to_go=torch.zeros(ROWS, STEPS),
        timestep=step,
        start=step == 0,
        valid=torch.ones(ROWS, STEPS, dtype=torch.bool),
    )


def queries(policy: Policy, count: int) -> list[Context]:
    """The last step of `count` new episodes, the answer's dimensions in turn."""
    draw = torch.Generator().manual_seed(1_000_000)

    def recording(label: int) -> Recording:
        observation, zeros = torch.randn(STEPS, 3, generator=draw), torch.zeros(STEPS)
        return made(policy, str(label), observation, torch.zeros(STEPS, 2), zeros, zeros)

    others = [recording(i) for i in range(4)]
    return [
        make_context(policy, recording(i), others, STEPS - 1, Target(i % 2)) for i in range(count)
    ]


def sees(probe: AttributionProbe, context: Context) -> bool:
    """Whether the step to be copied weighs most of those before the present one."""
    weight = probe.attribute(context).values.sum(1).abs()[:-1]
    return bool(weight.argmax() == STEPS - 1 - LAG and weight.max() > 0)


def measure(backbone: str, seed: int, names: list[str], count: int) -> Iterator[dict]:
    """A row a method."""
    policy, updates, error = trained(backbone, seed)
    contexts = queries(policy, count)
    others = [each.to_policy(shuffled_weights(policy, i)) for i, each in enumerate(contexts)]
    about = {"backbone": backbone, "seed": seed, "updates": updates, "error": round(error, 3)}
    about["learned"] = int(error < LEARNED)
    for probe in probes_for(policy, names):
        for share, found in zip(SHARES, (contexts, others), strict=True):
            seen = sum(sees(probe, each) for each in found)
            yield about | {"method": probe.name, "network": share, "seen": seen, "queries": count}


def tables(rows: Sequence[csv_rows.Row]) -> None:
    """Of the policies that learned to copy; the others by name."""
    learned = [row for row in rows if row["learned"] == "1"]
    failed = sorted({(r["backbone"], r["seed"], r["error"]) for r in rows if r not in learned})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    print(f"| | policies | {' | '.join(methods)} |\n{'|---' * (2 + len(methods))}|")
    for backbone in [*sorted({row["backbone"] for row in learned}), ""]:
        here = [row for row in learned if backbone in ("", row["backbone"])]
        count = len({(row["backbone"], row["seed"]) for row in here})
        cells = " | ".join(_cell(here, method) for method in methods)
        print(f"| {f'`{backbone}`' if backbone else 'all'} | {count} | {cells} |")
    if failed:
        print("\nDid not learn it: " + ", ".join(f"{b} (seed {s}: {e})" for b, s, e in failed))


def _cell(rows: Sequence[csv_rows.Row], method: str) -> str:
    shares = []
    for network in SHARES:
        found = [r for r in rows if (r["method"], r["network"]) == (method, network)]
        total = sum(int(row["queries"]) for row in found)
        shares.append(f"{sum(int(row['seen']) for row in found) / total:.0%}" if total else "")
    return ", ".join(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=", ".join(sorted(BACKBONES)))
    parser.add_argument("--rows", nargs="+", type=Path, default=[Path("copying.csv")])
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1e9, help="then no new policy is begun")
    given = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * given.minutes
    for seed in range(given.seeds):
        for name in given.names:
            if time.monotonic() < until:
                found = measure(name, seed, given.probes.split(","), given.queries)
                csv_rows.append(given.rows[0], list(found))
    tables([row for path in given.rows for row in csv_rows.read(path)])


if __name__ == "__main__":
    main()
