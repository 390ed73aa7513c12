"""Makes the embedded dataset `hopper-mixed` from the gym/hopper sets of a Minari data root.

    MINARI_DATASETS_PATH=… python data/make_hopper_mixed.py

Seeded: the same sources give the same episodes in the same order. Prints the table of its README.
"""

import itertools
import json
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
from minari.serialization import serialize_space

from decision_s4.envs.datasets import load
from decision_s4.envs.trajectories import Episode, Trajectories

SEED = 0
OUT = Path(__file__).parent / "hopper-mixed" / "data"
# source -> (steps to take, lowest return, highest return, bins of return to spread them over)
PARTS = {
    "gym/hopper/expert-v0": (61_000, 0, np.inf, 1),
    "gym/hopper/medium-v0": (1, 1000, 2500, 1),
    "gym/hopper/medium-replay-v0": (8_000, 0, 1000, 10),
}
METADATA = {
    "dataset_id": "decision-s4/hopper-mixed-v0",
    "algorithm_name": "TQC, SAC (rl-trained-agents)",
    "description": "Hopper-v5 episodes of expert, medium and poor agents: see README.md.",
    "author": ["decision-s4"],
    "minari_version": "0.5.4",
    "data_format": "hdf5",
    "ref_min_score": -20.272305,
    "ref_max_score": 3234.3,
}


def main() -> None:
    rng = np.random.default_rng(SEED)
    chosen: list[Episode] = []
    for source, (steps, low, high, bins) in PARTS.items():
        data = load(source)
        part = np.concatenate(
            [choose(data, steps / bins, *edges, rng) for edges in bin_edges(low, high, bins)]
        )
        print(row(source, data, part))
        chosen += [data.episode(i) for i in part]
    write([chosen[i] for i in rng.permutation(len(chosen))], data)


def bin_edges(low: float, high: float, bins: int) -> list[tuple[float, float]]:
    if bins == 1:
        return [(low, high)]
    edges = np.linspace(low, high, bins + 1)
    return list(itertools.pairwise(edges))


def choose(
    data: Trajectories, steps: float, low: float, high: float, rng: np.random.Generator
) -> np.ndarray:
    """Episodes with a return in [low, high): the best if `high` is open, else a random choice."""
    inside = np.flatnonzero((data.returns >= low) & (data.returns < high))
    best = inside[np.argsort(-data.returns[inside])]
    order = best if np.isinf(high) else rng.permutation(inside)
    return order[: np.searchsorted(np.cumsum(data.lengths[order]), steps) + 1]


def row(source: str, data: Trajectories, part: np.ndarray) -> str:
    returns, steps = data.returns[part], data.lengths[part].sum()
    extent = f"{returns.mean():.0f} ({returns.min():.0f} … {returns.max():.0f})"
    return f"| `{source}` | {len(part)} | {steps:,} | {extent} |"


def write(episodes: list[Episode], like: Trajectories) -> None:
    """A Minari HDF5 dataset; the newest HDF5 layout keeps short episodes small."""
    OUT.mkdir(parents=True, exist_ok=True)
    with h5py.File(OUT / "main_data.hdf5", "w", libver="latest") as file:
        for i, episode in enumerate(episodes):
            write_episode(file.create_group(f"episode_{i}"), i, episode)
    metadata = METADATA | described(episodes, like)
    (OUT / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")


def write_episode(group: h5py.Group, number: int, episode: Episode) -> None:
    group.attrs.update(id=number, total_steps=len(episode.rewards))
    for name, values in episode._asdict().items():
        if values.dtype == bool:
            group.create_dataset(name, data=values)
        else:
            data = np.asarray(values, np.float32)
            group.create_dataset(
                name,
                data=data,
                chunks=data.shape,
                compression="gzip",
                compression_opts=9,
                shuffle=True,
            )


def described(episodes: list[Episode], like: Trajectories) -> dict:
    return {
        "total_episodes": len(episodes),
        "total_steps": sum(len(episode.rewards) for episode in episodes),
        "observation_space": serialize_space(like.observation_space),
        "action_space": serialize_space(like.action_space),
        "env_spec": gym.spec("Hopper-v5").to_json(),
    }


if __name__ == "__main__":
    main()
