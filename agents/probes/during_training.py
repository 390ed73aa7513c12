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
    Attribution,
    AttributionProbe,
    PolicyProbe,
    Probe,
    make_probes,
    targets_of,
)
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.faithfulness import RANDOM, faithfulness
from decision_s4.agents.probes.recordings import logged
from decision_s4.agents.probes.report import feature_names
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
    policy = copy.deepcopy(policy).cpu().eval()
    middle = np.linspace(0, data.num_episodes - 1, EPISODES + 2).astype(int)[1:-1]
    recordings = logged(policy, data, middle.tolist())
    targets = targets_of(policy)
    contexts = [
        make_context(
            policy,
            recording,
            [other for other in recordings if other is not recording],
            recording.steps * 2 // 3,
            targets[i % len(targets)],
        )
        for i, recording in enumerate(recordings)
    ]
    maps = [probe for probe in probes if isinstance(probe, AttributionProbe)]
    if maps:
        found = faithfulness(maps, contexts, weights=False)
        scalars = {f"probe/{name}/deletion": found.mean(name)[0] for name in found.scores}
        scalars |= {
            f"probe/{probe.name}/deletion_over_random": found.beats(probe.name, RANDOM)[0]
            for probe in maps
        }
        logger.log(step, scalars)
    for probe in probes:
        if isinstance(probe, PolicyProbe):
            values = probe.examine(contexts).scalars
            logger.log(step, {f"probe/{name}": value for name, value in values.items()})
        else:
            figure = map_figure(probe.attribute(contexts[0]), feature_names(policy, env_id))
            logger.figure(f"probe/{probe.name}", figure, step)


def map_figure(found: Attribution, names: Sequence[str]) -> Any:
    """A matplotlib figure of a map, with symmetric limits."""
    from matplotlib.figure import Figure

    values = found.over_features(len(names)).cpu().numpy()
    limit = float(np.abs(values).max()) or 1.0
    figure = Figure(figsize=(9, 0.6 + 0.24 * len(names)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        values.T,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=(found.first - 0.5, found.step + 0.5, len(names) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="step", title=f"{found.method}: {found.target} at step {found.step}")
    figure.colorbar(image, label="relevance")
    return figure
