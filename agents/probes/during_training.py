"""Cheap probes at each evaluation of a training, for TensorBoard's `probe/*`.

They look at a copy of the policy over logged episodes and draw on none of the run's random
numbers: training is bit for bit the same with them and without.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import (
    AttributionProbe,
    PolicyProbe,
    Probe,
    make_probes,
    targets_of,
)
from decision_s4.agents.probes.context import Context, make_context
from decision_s4.agents.probes.faithfulness import RANDOM, faithfulness
from decision_s4.agents.probes.figures import layers_figure, map_figure
from decision_s4.agents.probes.layer_probes import HiddenAttention
from decision_s4.agents.probes.recordings import logged
from decision_s4.agents.probes.report import feature_names, target_name
from decision_s4.envs.errors import UserError
from decision_s4.envs.trajectories import Trajectories

EPISODES = 4
"""Logged episodes looked at, one query each."""


def training_probes(names: Sequence[str], policy: Policy) -> list[Probe]:
    """The probes by name. Raises UserError for an unknown or slow one, or one that cannot serve."""
    probes = make_probes(names, policy)
    for probe in probes:
        if not probe.cheap:
            raise UserError(
                f"probe '{probe.name}' is too slow for every evaluation; "
                f"ask evaluate.py for it: --probe {probe.name}"
            )
    return probes


def log_probes(
    probes: Sequence[Probe],
    policy: Policy,
    data: Trajectories,
    env_id: str | None,
    logger: Any,
    step: int,
) -> None:
    """Maps as figures, what they are worth as scalars."""
    contexts = _contexts(copy.deepcopy(policy).cpu().eval(), data)
    maps = [probe for probe in probes if isinstance(probe, AttributionProbe)]
    if maps:
        logger.log(step, _worth(maps, contexts))
    for probe in probes:
        if isinstance(probe, PolicyProbe):
            values = probe.examine(contexts).scalars
            logger.log(step, {f"probe/{name}": value for name, value in values.items()})
        elif isinstance(probe, AttributionProbe):
            _log_maps(probe, contexts, env_id, logger, step)


def _contexts(policy: Policy, data: Trajectories) -> list[Context]:
    """Two thirds into some logged episodes, for one target after another."""
    middle = np.linspace(0, data.num_episodes - 1, EPISODES + 2).astype(int)[1:-1]
    recordings = logged(policy, data, middle.tolist())
    targets = targets_of(policy)
    return [
        make_context(
            policy,
            recording,
            [other for other in recordings if other is not recording],
            recording.steps * 2 // 3,
            targets[i % len(targets)],
        )
        for i, recording in enumerate(recordings)
    ]


def _worth(maps: Sequence[AttributionProbe], contexts: Sequence[Context]) -> dict[str, float]:
    """What taking inputs away in the order of each map does."""
    found = faithfulness(maps, contexts, weights=False)
    return {
        **{f"probe/{name}/deletion": found.mean(name)[0] for name in found.scores},
        **{
            f"probe/{probe.name}/deletion_over_random": found.beats(probe.name, RANDOM)[0]
            for probe in maps
        },
    }


def _log_maps(
    probe: AttributionProbe, contexts: Sequence[Context], env_id: str | None, logger: Any, step: int
) -> None:
    """The first map and, of attention, all layers' as figures; what inputs do not get."""
    found = [probe.attribute(context) for context in contexts]
    policy, target = contexts[0].policy, contexts[0].target
    names, asked = feature_names(policy, env_id), target_name(policy, env_id, target)
    logger.figure(f"probe/{probe.name}", map_figure(found[0], names, asked), step)
    if isinstance(probe, HiddenAttention):
        logger.figure(f"probe/{probe.name}/layers", layers_figure(probe, contexts[0]), step)
    gaps = [each.conservation_gap for each in found if each.conservation_gap is not None]
    if gaps:
        logger.log(step, {f"probe/{probe.name}/conservation_gap": sum(gaps) / len(gaps)})
