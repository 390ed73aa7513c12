"""A video that explains itself: below each frame, which past steps and inputs mattered now.

    frame
    the inputs that pushed the first action up or down most | how much of it the past steps hold
    traces of return-to-go and actions up to now

The film is that of `record`; the map of each frame is of one method over the same episode.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from decision_s4.agents.actor import Actor
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import AttributionProbe, Probe, targets_of
from decision_s4.agents.probes.context import make_context
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.probes.layer_probes import LayerAttribution
from decision_s4.agents.probes.recordings import Recording, play
from decision_s4.agents.probes.report import feature_names, target_name
from decision_s4.agents.probes.strip import LISTED, SHOWN, Story, drawn
from decision_s4.envs.feature_names import action_names
from decision_s4.envs.task import Task
from decision_s4.envs.video import record


def film_explained(
    policy: Policy, task: Task, folder: Path, seed: int, probes: Sequence[Probe] = ()
) -> Iterator[Path]:
    """One MP4 a target return, explained-TARGET.mp4, by the first of `probes` that is quick and
    tells inputs apart, else by gradient × input; none where no picture can be made."""
    recordings = play(policy, task, 1, seed)
    for target, aim, recording in zip(task.target_returns, task.aims, recordings, strict=True):
        plain, path = folder / f"plain-{target:g}.mp4", folder / f"explained-{target:g}.mp4"
        env_id, kwargs = task.environment, task.env_kwargs
        if record(Actor(policy), env_id, plain, aim, seed, env_kwargs=kwargs) is None:
            return
        _annotate(policy, env_id, recording, recordings, _chosen(probes), plain, path)
        plain.unlink()
        yield path


def _chosen(probes: Sequence[Probe]) -> AttributionProbe:
    quick = [probe for probe in probes if isinstance(probe, AttributionProbe) and probe.cheap]
    telling = (probe for probe in quick if not isinstance(probe, LayerAttribution))
    return next(telling, GradientTimesInput())


def _annotate(
    policy: Policy,
    env_id: str,
    recording: Recording,
    others: list[Recording],
    probe: AttributionProbe,
    source: Path,
    path: Path,
) -> None:
    """Add the strip to each frame of `source`."""
    with closing(imageio.get_reader(source)) as reader:
        fps = reader.get_meta_data()["fps"]
        frames = [np.asarray(frame) for frame in reader.iter_data()]
    steps = np.linspace(0, recording.steps - 1, len(frames)).round().astype(int).tolist()
    found = [_map(policy, recording, others, probe, step) for step in steps]
    maps, answers = np.stack([values for values, _ in found]), [answer for _, answer in found]
    story = _story(policy, env_id, recording, probe, maps)
    with closing(
        imageio.get_writer(
            path, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2
        )
    ) as file:
        for frame, step, values, answer in zip(frames, steps, maps, answers, strict=True):
            file.append_data(drawn(frame, values, answer, story, step))


def _map(
    policy: Policy,
    recording: Recording,
    others: list[Recording],
    probe: AttributionProbe,
    step: int,
) -> tuple[np.ndarray, float]:
    """(SHOWN, F) relevance of the last steps' inputs for the first target, and this."""
    context = make_context(policy, recording, others, step, targets_of(policy)[0], window=SHOWN)
    values = probe.attribute(context).values[-SHOWN:].numpy()
    earlier = np.zeros((SHOWN - len(values), values.shape[1]))
    return np.concatenate([earlier, values]), context.prediction


def _story(
    policy: Policy, env_id: str, recording: Recording, probe: AttributionProbe, maps: np.ndarray
) -> Story:
    action = policy.action_features(recording.action).numpy()
    sums, parts = np.abs(maps.sum(1)), policy.token_map(1)
    before = np.abs(maps[:, :-1]).sum(-1).max(1)
    return Story(
        target_name(policy, env_id, targets_of(policy)[0]),
        probe.name,
        feature_names(policy, env_id),
        [part.modality for part in parts for _ in range(*part.features.indices(maps.shape[-1]))],
        action_names(env_id, policy.action_space, policy.head.linear.out_features),
        recording.return_to_go.numpy() if policy.options.condition_on_return else None,
        action,
        np.argsort(-sums.mean(0))[:LISTED].tolist(),
        float(np.quantile(sums.max(1), 0.95)) or 1.0,
        float(np.quantile(before, 0.95)) or 1.0,
    )
