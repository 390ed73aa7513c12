"""Which eyes learn to balance a pole from few pictures, as a Markdown table.

    python benchmarks/pixels.py                             every kind of eyes, 3 seeds
    python benchmarks/pixels.py --eyes cnn vit-ssm --backbone gru
    python benchmarks/pixels.py --seeds                     only the table of what is there

Writes a Minari dataset of CartPolePixels-v1 (24 × 24 grey levels; speeds have to be remembered) by
a controller that sees the state and stumbles now and then; trains `train.py --algo bc` on it, eyes
and backbone end to end; finished runs in --runs are not trained again. Mean return over seeds and
20 episodes, 500 at most; a policy that acts at random has about 22.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from backbone_returns import ROOT, evaluations, train
from backbone_table import return_cell

from decision_s4.agents.vision import KINDS
from decision_s4.envs.collect import sample_episodes
from decision_s4.envs.memory.pixels import frame
from decision_s4.envs.minari_writer import Description, exists, write_dataset
from decision_s4.envs.timestep import TimeStep
from decision_s4.envs.trajectories import Episode

DATASET, STUMBLES = "cartpole/pixels-v0", 0.2


class Controller:
    """Pushes to where the pole falls, and, by a little, to the middle."""

    def initial_state(self, batch_size: int) -> None:
        """It remembers nothing."""

    def act(
        self, step: TimeStep, state: None, deterministic: bool = False
    ) -> tuple[torch.Tensor, None]:
        x, speed, angle, turning = step.observation.unbind(1)
        push = (angle + 0.5 * turning + 0.05 * x + 0.1 * speed > 0).long()
        random = torch.rand(len(push)) < STUMBLES
        return torch.where(random, torch.randint(2, push.shape), push), state


def in_pixels(episodes: Iterator[Episode]) -> Iterator[Episode]:
    """What a camera would have seen of them."""
    for episode in episodes:
        yield episode._replace(observations=np.stack([frame(s) for s in episode.observations]))


def make_dataset(steps: int) -> None:
    torch.manual_seed(0)
    text = "CartPole from pictures: a controller with the state, a fifth of actions random."
    about = Description(DATASET, "CartPolePixels-v1", "controller", text)
    episodes = in_pixels(sample_episodes(Controller(), "CartPole-v1", steps, seed=1000))
    print(write_dataset(episodes, about).describe(None), flush=True)


def settings_of(eyes: str, seed: int, given: argparse.Namespace) -> str:
    return (
        f"--algo bc --dataset {DATASET} --eyes {eyes} --backbone {given.backbone} --seed {seed} "
        f"--eval-episodes 20 --n-layers 1 --batch-steps {given.batch_steps} "
        "--recurrence-learning-rate 1e-3"
    )


def table(given: argparse.Namespace) -> Iterator[str]:
    """Markdown, a kind of eyes a line."""
    yield f"| eyes, before {given.backbone} | return |"
    yield "|---|---|"
    for eyes in given.eyes:
        last = [evaluations(path)[-1:] for path in sorted(given.runs.glob(f"{eyes}-[0-9]*"))]
        means = [float(row["return_mean"]) for rows in last for row in rows]
        if means:
            yield f"| {eyes} | {return_cell(means)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--eyes", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--backbone", default="lru")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--data-steps", type=int, default=10000)
    parser.add_argument("--batch-steps", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/pixels")
    given = parser.parse_args()
    os.environ.setdefault("MINARI_DATASETS_PATH", str(given.runs.resolve() / "data"))
    if given.seeds and not exists(DATASET):
        make_dataset(given.data_steps)
    for seed in given.seeds:
        for eyes in given.eyes:
            folder = given.runs.resolve() / f"{eyes}-{seed}"
            train(folder, settings_of(eyes, seed, given), given.updates)
    print("\n".join(table(given)))


if __name__ == "__main__":
    main()
