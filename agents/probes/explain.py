"""A run explained: episodes played, queries asked of every method, evidence, one HTML file."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import (
    AttributionProbe,
    Findings,
    PolicyProbe,
    Probe,
    Target,
    make_probes,
    targets_of,
)
from decision_s4.agents.probes.closed_loop import worth_of_inputs
from decision_s4.agents.probes.context import Context, make_context
from decision_s4.agents.probes.faithfulness import Faithfulness, faithfulness
from decision_s4.agents.probes.recordings import Recording, play
from decision_s4.agents.probes.report import Episode, Query, Report, feature_names, render
from decision_s4.agents.run_dir import replace_text
from decision_s4.agents.saved import Saved
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task

EPISODES = 3
"""Played for each target return; the first is shown, all are compared with and examined."""
QUERIES = 12
"""Steps of a shown episode that are explained."""
EVIDENCE = 12
"""Queries over all episodes that faithfulness is measured on."""
LOOP_EPISODES = 4
"""Of the closed loop, for each masked feature."""
OTHERS = 4
"""Episodes that a query is compared with."""
MOST_TARGETS = 3
"""Action dimensions that are explained; a hand has 28."""
DEFAULT_PROBES = ("gradient-x-input", "integrated-gradients", "occlusion")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to do, checked before any work."""

    probes: list[Probe]
    report: Path


def plan(names: Sequence[str], report: Path, policy: Saved) -> Plan:
    """The probes by name, and where their report goes.

    Raises:
        UserError: for an unknown probe, one that cannot serve the policy, or a report that cannot
            be written.
    """
    if not isinstance(policy, Policy):
        name = getattr(policy.options, "algo", "ppo")
        raise UserError(
            f"--probe: probes read policies that aim at a return, not one of {name}; "
            "leave out --probe and --report"
        )
    probes = make_probes(names or DEFAULT_PROBES, policy)
    folder = report.absolute().parent
    if report.is_dir():
        raise UserError(f"--report {report} is a folder; give a file, as {report / 'report.html'}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--report {report} cannot be written; give a file in a writable folder")
    return Plan(probes, report)


def explain(plan: Plan, policy: Policy, task: Task, about: str, seed: int, say: Say) -> None:
    """Play, ask, measure, and write the report."""
    targets = targets_of(policy)[:MOST_TARGETS]
    recordings = play(policy, task, EPISODES, seed)
    probes = [probe for probe in plan.probes if isinstance(probe, AttributionProbe)]
    shown = [
        _episode(policy, recordings, i, targets, probes, say)
        for i in range(0, len(recordings), EPISODES)
        if probes
    ]
    contexts = spread_queries(policy, recordings, targets, EVIDENCE)
    say("evidence …")
    evidence = faithfulness(probes, contexts, seed) if probes else None
    found = _findings(plan, contexts, task, say)
    loop, needs = None, ""
    if probes:
        say("the closed loop …")
        loop, needs = _closed_loop(policy, task, recordings, seed)
    report = Report(about, policy, task, targets, shown, evidence, found, loop, needs)
    replace_text(plan.report, render(report))
    if evidence:
        _say_best(evidence, say)
    say(f"report  {plan.report}")


def _closed_loop(
    policy: Policy, task: Task, recordings: Sequence[Recording], seed: int
) -> tuple[Findings, str]:
    """What each input is worth, as a table and in a sentence."""
    names = feature_names(policy, task.env_id)
    worth = worth_of_inputs(policy, task, recordings, names, LOOP_EPISODES, seed + EPISODES)
    asked = f", asked for {task.aims[0]:g}" if policy.options.condition_on_return else ""
    note = (
        f"Played anew{asked}, on the same seeds: in each row one input holds another episode's "
        "values at every step. 95% intervals."
    )
    found = Findings("What each input is worth in the loop", [worth.table()], notes=[note])
    return found, worth.summary(asked)


def _findings(plan: Plan, contexts: Sequence[Context], task: Task, say: Say) -> list[Findings]:
    found = []
    for probe in plan.probes:
        if isinstance(probe, PolicyProbe):
            say(f"{probe.name} …")
            found.append(probe.examine(contexts, task))
    return found


def _say_best(evidence: Faithfulness, say: Say) -> None:
    best = evidence.methods[0]
    value, low, high = evidence.beats(best, "random order")
    say(
        f"faithful: {best} beats a random order in deletion by {value:.3f} ({low:.3f} … {high:.3f})"
    )


def _episode(
    policy: Policy,
    recordings: Sequence[Recording],
    index: int,
    targets: Sequence[Target],
    probes: Sequence[AttributionProbe],
    say: Say,
) -> Episode:
    recording, queries = recordings[index], []
    steps = np.unique(np.linspace(0, recording.steps - 1, QUERIES).round().astype(int))
    for number, step in enumerate(steps.tolist()):
        say(f"{recording.label}: query {number + 1} of {len(steps)} …")
        maps = []
        for target in targets:
            context = make_context(policy, recording, others(recordings, index), step, target)
            maps.append([probe.attribute(context) for probe in probes])
        queries.append(Query(step, context.first, maps))
    return Episode(recording, queries)


def others(recordings: Sequence[Recording], index: int, most: int = OTHERS) -> list[Recording]:
    """Other episodes to compare with, of all target returns in turn."""
    order = [(index + 1 + i * (EPISODES + 1)) % len(recordings) for i in range(len(recordings))]
    order += range(len(recordings))
    return [recordings[i] for i in dict.fromkeys(order) if i != index][:most]


def spread_queries(
    policy: Policy, recordings: Sequence[Recording], targets: Sequence[Target], count: int
) -> list[Context]:
    """Queries at steps spread over all episodes, targets in turn."""
    contexts = []
    for i in range(count):
        index = i % len(recordings)
        share = (i // len(recordings) + 0.5) / -(-count // len(recordings))
        step = int(share * recordings[index].steps)
        target = targets[i % len(targets)]
        contexts.append(
            make_context(policy, recordings[index], others(recordings, index), step, target)
        )
    return contexts
