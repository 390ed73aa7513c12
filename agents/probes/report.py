"""One self-contained HTML file about a policy: no network, no libraries.

Maps travel as base64 of int16, each scaled by its own largest size. Shapes: T steps, F features.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from decision_s4.agents.encoders import Standardised
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Attribution, Findings, Target
from decision_s4.agents.probes.faithfulness import GRADIENT, RANDOM, Faithfulness
from decision_s4.agents.probes.page import evidence_section, finding_section, pushes
from decision_s4.agents.probes.recordings import Recording
from decision_s4.envs.feature_names import action_names, observation_names
from decision_s4.envs.task import Task

TEMPLATE = Path(__file__).with_name("report.html")
SCALE_QUANTILE = 0.995
"""Of a method's largest cells: the limit of its colours, so that one cell bleaches no other."""


@dataclass(frozen=True)
class Query:
    """One step explained."""

    step: int
    first: int
    maps: Sequence[Sequence[Attribution]]
    """By target, then by method."""


@dataclass(frozen=True)
class Episode:
    """A recorded episode and what was asked about it."""

    recording: Recording
    queries: Sequence[Query]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    about: str
    policy: Policy
    task: Task
    targets: Sequence[Target]
    episodes: Sequence[Episode]
    evidence: Faithfulness | None
    findings: Sequence[Findings]
    loop: Findings | None = None
    """What each input is worth, played."""
    needs: str = ""
    """The same in a sentence."""


def render(report: Report) -> str:
    """The page; what does not change with a step or a method stands in it without a script."""
    data = page_data(report)
    sections = [evidence_section(report.evidence)] if report.evidence else []
    sections += [finding_section(found) for found in report.findings]
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "ABOUT": escape(report.about, quote=False),
        "DID": escape(data["episodes"][0]["did"]) if data["episodes"] else "",
        "NEEDS": escape(report.needs, quote=False),
        "STILL": _still(data, report) if data["episodes"] else "",
        "LOOP": finding_section(report.loop) if report.loop else "",
        "REST": "".join(sections),
        "DATA": packed,
    }
    return re.sub("__([A-Z]+)__", lambda found: parts[found[1]], TEMPLATE.read_text("utf-8"))


def feature_names(policy: Policy, env_id: str | None) -> list[str]:
    """(F,) names, in the order of the features."""
    observation = observation_names(
        env_id, policy.observation_space, policy.observation_features.width
    )
    action = action_names(env_id, policy.action_space, policy.action_features.width)
    return ["return-to-go", *observation, *(f"previous {name}" for name in action)]


def target_name(policy: Policy, env_id: str | None, target: Target) -> str:
    """As a person reads it: thigh torque."""
    if target.kind != "action":
        return target.name
    width = policy.head.linear.out_features
    return action_names(env_id, policy.action_space, width)[target.dimension]


def page_data(report: Report) -> dict[str, Any]:
    """Everything as plain values."""
    policy, env_id = report.policy, report.task.env_id
    names = feature_names(policy, env_id)
    parts = [{"name": p.modality, "first": p.features.start} for p in policy.token_map(1)]
    methods = _methods(report, len(names))
    unread = _unread(policy)
    for part in policy.token_map(1):
        if part.modality in unread:
            names[part.features] = [f"{name} (not read)" for name in names[part.features]]
    width = policy.head.linear.out_features
    return {
        "features": names,
        "modalities": parts,
        "reads_return": "return_to_go" not in unread,
        "targets": [target_name(policy, env_id, target) for target in report.targets],
        "actions": action_names(env_id, policy.action_space, width),
        "methods": methods,
        "first_method": _most_faithful(report.evidence, methods),
        "limits": _limits(report, len(names)),
        "episodes": [_episode(policy, episode, len(names)) for episode in report.episodes],
    }


def _still(data: dict[str, Any], report: Report) -> str:
    """The middle query of the first episode, by the first method, for who runs no script."""
    query = report.episodes[0].queries[len(report.episodes[0].queries) // 2]
    found = query.maps[0][data["first_method"]]
    if found.values.shape[1] != len(data["features"]):
        return ""
    names, sums = data["features"], found.values.sum(0).tolist()
    answer = f"{data['targets'][0]} was {found.prediction:+.3f}"
    return pushes(f"At step {query.step} {answer}", found.method, names, sums)


def _unread(policy: Policy) -> set[str]:
    """Modalities that the policy was made to do without."""
    reads = {
        "return_to_go": policy.options.condition_on_return,
        "previous_action": policy.options.previous_action,
    }
    return {name for name, read in reads.items() if not read}


def _methods(report: Report, width: int) -> list[dict[str, Any]]:
    from decision_s4.agents.probes.base import make_probe

    if not report.episodes:
        return []
    return [
        {
            "name": found.method,
            "question": make_probe(found.method).question,
            "tells_features": found.values.shape[1] == width,
            "gain": report.evidence and report.evidence.beats(found.method, RANDOM),
            "over_gradient": report.evidence and report.evidence.beats(found.method, GRADIENT),
        }
        for found in report.episodes[0].queries[0].maps[0]
    ]


def _most_faithful(evidence: Faithfulness | None, methods: list[dict[str, Any]]) -> int:
    """Place of the method that is shown at first: of those that tell inputs apart, if any do."""
    order = evidence.methods if evidence else []
    telling = [i for i, method in enumerate(methods) if method["tells_features"]]
    places = {name: place for place, name in enumerate(order)}
    key = lambda i: places.get(methods[i]["name"], len(places))  # noqa: E731
    return min(telling or range(len(methods)), key=key, default=0)


def _limits(report: Report, width: int) -> list[list[float]]:
    """By method and target, over all queries."""
    queries = [query for episode in report.episodes for query in episode.queries]
    if not queries:
        return []

    def limit(method: int, target: int) -> float:
        cells = [q.maps[target][method].over_features(width).abs().flatten() for q in queries]
        sizes = np.concatenate([cell.cpu().numpy() for cell in cells])
        top = np.quantile(sizes[sizes > 0], SCALE_QUANTILE) if (sizes > 0).any() else 1.0
        return float(f"{top:.2g}")

    count = len(queries[0].maps[0])
    return [[limit(m, t) for t in range(len(report.targets))] for m in range(count)]


def _episode(policy: Policy, episode: Episode, width: int) -> dict[str, Any]:
    recording = episode.recording
    action = policy.action_features(recording.action)
    return {
        "label": f"{recording.label}, return {recording.reward.sum():.0f}",
        "did": _did(policy, recording),
        "return_to_go": _rounded(recording.return_to_go),
        "actions": [_rounded(column) for column in action.T],
        "values": _rounded(raw_values(policy, recording).flatten()),
        "queries": [
            {
                "step": query.step,
                "first": query.first,
                "predictions": [maps[0].prediction for maps in query.maps],
                "maps": [[_map(found, width) for found in maps] for maps in query.maps],
            }
            for query in episode.queries
        ],
    }


def _did(policy: Policy, recording: Recording) -> str:
    """What became of an episode, in a sentence."""
    asked = (
        f"Asked for {recording.return_to_go[0]:g}, it"
        if policy.options.condition_on_return
        else "It"
    )
    ends = {True: "until the environment ended the episode", False: "up to the time limit"}
    end = f" {ends[recording.terminated]}" if recording.terminated is not None else ""
    return f"{asked} returned {recording.reward.sum():.0f} in {recording.steps} steps{end}."


def raw_values(policy: Policy, recording: Recording) -> Tensor:
    """(T, F) features in units of the environment, where the policy standardises them."""
    values = recording.features.clone()
    values[:, 0] = recording.return_to_go
    observation = policy.observation_features
    if isinstance(observation, Standardised):
        part = slice(1, 1 + observation.width)
        values[:, part] = values[:, part] * observation.std + observation.mean
    return values


def _map(found: Attribution, width: int) -> dict[str, Any]:
    cells = found.over_features(width).detach().cpu().double().numpy()
    limit = float(np.abs(cells).max()) or 1.0
    packed = np.round(cells / limit * 32767).astype("<i2")
    return {
        "data": base64.b64encode(packed.tobytes()).decode(),
        "limit": limit,
        "bias": found.bias,
        "baseline": found.baseline,
        "notes": list(found.notes),
    }


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.detach().cpu().double().tolist()]
