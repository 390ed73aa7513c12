"""Pictures of a policy: rollout videos, and its actions beside the logged ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_s4.agents.policy import Policy
from decision_s4.envs.feature_names import action_names
from decision_s4.envs.task import Task
from decision_s4.envs.timestep import Agent
from decision_s4.envs.video import Video, record


def film(agent: Agent, task: Task, folder: Path, seed: int) -> Iterator[tuple[str, Video]]:
    """One MP4 a target return in `folder`, as (TensorBoard tag, video); skips what cannot be."""
    if task.env_id is None:
        return
    for target, aim in zip(task.target_returns, task.aims, strict=True):
        name = "episode" if target is None else f"target-{target:g}"
        path = folder / f"{name}.mp4"
        video = record(agent, task.env_id, path, aim, seed, env_kwargs=task.env_kwargs)
        if video is None:
            return
        yield f"video/{name.replace('-', '_', 1)}", video


def film_into(logger: Any, run_dir: Path, agent: Agent, task: Task, seed: int, step: int) -> None:
    """`film` into a run's folder and its curves."""
    for tag, video in film(agent, task, run_dir / "videos", seed):
        logger.video(tag, video.frames, video.fps, step)
        logger.message(f"video   {video.path} (return {video.episodes.returns[0]:.0f})")


@torch.inference_mode()
def prediction_figure(
    policy: Policy, batch: Any, env_id: str | None = None, steps: int = 200
) -> Any:
    """A matplotlib figure: logged and predicted actions over the batch's first valid steps.

    The actions of a known environment `env_id` have their names.
    """
    from matplotlib.figure import Figure

    features, _ = policy(batch)
    predicted, logged = (
        actions[batch.valid][:steps, None].flatten(1).cpu().numpy()  # a Discrete one is a number
        for actions in (policy.head.act(features), batch.action)
    )
    names = action_names(env_id, policy.action_space, predicted.shape[1])
    count = min(predicted.shape[1], 6)
    figure = Figure(figsize=(8, 1.5 * max(count, 2)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(count, 1, sharex=True))
    for i, axis in enumerate(axes):
        axis.plot(logged[:, i], color="0.6", linewidth=1, label="logged")
        axis.plot(predicted[:, i], color="tab:blue", linewidth=1, label="policy")
        axis.set_ylabel(names[i])
    axes[0].legend(loc="upper right", ncols=2, fontsize="small")
    axes[-1].set_xlabel("step of the batch")
    return figure
