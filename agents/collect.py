"""Make Minari datasets: by D4RL's protocol from a fresh agent, or from a run of this project.

decision-s4-collect --env Walker2d-v5 --name mine/walker2d
decision-s4-collect --run runs/decision-s4/… --name mine/hopper/s4-v0
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.config import parse
from decision_s4.agents.d4rl_protocol import QUALITIES, Protocol, check_qualities
from decision_s4.agents.data_maker import DataMaker, MakerOptions
from decision_s4.agents.dataset_writer import write
from decision_s4.agents.devices import choose_device, use_threads
from decision_s4.agents.options import check_ranges
from decision_s4.agents.program import exit_code
from decision_s4.envs.collect import sample_episodes
from decision_s4.envs.errors import UserError
from decision_s4.envs.minari_writer import Description
from decision_s4.envs.scores import reference_scores


@dataclass(frozen=True)
class CollectConfig(MakerOptions):
    """Make Minari datasets by D4RL's protocol, or from a run."""

    name: str = ""
    """Minari id to write, such as mine/hopper/s4-v0; with --env the part before the quality:
    mine/hopper gives mine/hopper/medium-v0 and so on."""
    env: str | None = None
    """Gymnasium id: train an agent there and make a dataset of each quality."""
    run: Path | None = None
    """Folder of a run of this project, whose policy is recorded instead."""
    qualities: tuple[str, ...] = QUALITIES
    """With --env, of random, medium, medium-replay, expert, medium-expert."""
    steps: int = 100_000
    """Steps of a sampled dataset at least; medium-replay has what the training took."""
    reference: tuple[float, ...] = ()
    """Returns that score 0 and 100; none: D4RL's for its tasks, elsewhere those of the random
    policy and of the trained expert."""
    target_return: float | None = None
    """With --run: the return asked for; none: the run's first."""
    work_dir: Path | None = None
    """With --env: folder of the training, to go on from; default: runs/collect/<env>-<seed>."""
    seed: int = 0
    """Seed of training and episodes."""
    device: str = "cpu"
    """Device of the training: cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    threads: int = 1
    """CPU threads of the training, 0 for all cores."""


def collect(config: CollectConfig) -> None:
    """Make what is missing. Raises UserError for bad input."""
    check_ranges(config)
    if not config.name or (config.env is None) == (config.run is None):
        raise UserError("give --name and one of --env and --run; see --help")
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.run is not None:
        _record_run(config.run, config)
    if config.env is not None:
        _make_qualities(config.env, config)


def _record_run(run: Path, config: CollectConfig) -> None:
    """A dataset of the episodes of a run's best policy."""
    found = checkpoint.load(run, "best", with_trainer=False)
    policy, task = saved.rebuild(found), saved.task(found)
    if task.env_id is None:
        raise UserError(f"{run} names no environment; collect from a run that does")
    target = task.aims[0] if config.target_return is None else task.aim(config.target_return)
    scale = reference_scores(task.env_id, user_scores=config.reference or None) or task.reference
    algo = str(found.metadata.get("algo"))
    asked = "" if target is None else f", asked for {target:g}"
    text = f"A policy of {algo} at step {found.step}{asked}."
    about = Description(config.name, task.env_id, algo, text, scale, task.env_kwargs)
    episodes = sample_episodes(
        saved.agent_of(policy),
        task.env_id,
        config.steps,
        config.seed,
        target,
        deterministic=True,
        env_kwargs=task.env_kwargs,
    )
    write(about, episodes, config.steps)


def _make_qualities(env_id: str, config: CollectConfig) -> None:
    """D4RL's datasets from a training that is begun or gone on with."""
    check_qualities(config.qualities)
    folder = config.work_dir or Path("runs/collect") / f"{env_id}-{config.seed}"
    maker = DataMaker(env_id, config, folder, config.seed, str(choose_device(config.device)))
    known = reference_scores(env_id, user_scores=config.reference or None)
    Protocol(maker, config.name, config.steps, known).make(config.qualities)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 interrupted, 141 unread."""
    argv = sys.argv[1:] if argv is None else argv

    def run() -> None:
        collect(parse(CollectConfig, argv, prog="collect", description=__doc__))

    return exit_code("collect", run)


if __name__ == "__main__":
    sys.exit(main())
