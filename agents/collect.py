"""Make Minari datasets: by D4RL's protocol from a fresh agent, or from a run of this project.

decision-s4-collect --env Walker2d-v5 --name mine/walker2d
decision-s4-collect --run runs/decision-s4/… --name mine/hopper/s4-v0
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.config import parse
from decision_s4.agents.data_maker import Curve, DataMaker, MakerOptions, RandomAgent
from decision_s4.agents.options import check_ranges
from decision_s4.agents.program import exit_code
from decision_s4.envs.collect import (
    Description,
    Quality,
    exists,
    sample_episodes,
    write_dataset,
)
from decision_s4.envs.datasets import minari_root
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.make import make
from decision_s4.envs.rollout import rollout
from decision_s4.envs.scores import ReferenceScores, reference_scores
from decision_s4.envs.trajectories import Episode

QUALITIES = ("random", "medium", "medium-replay", "expert", "medium-expert")
NEEDS_EXPERT = {"expert", "medium-expert"}
MEDIUM_SHARE = 1 / 3  # of the expert's performance: D4RL's "approximately 1/3" (arXiv 2004.07219)


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
    """Device of the training."""
    threads: int = 1
    """CPU threads of the training."""


def collect(config: CollectConfig) -> None:
    """Make what is missing. Raises UserError for bad input."""
    check_ranges(config)
    if not config.name or (config.env is None) == (config.run is None):
        raise UserError("give --name and one of --env and --run; see --help")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.run:
        _record_run(config)
    else:
        _Protocol(config).make_all()


def _record_run(config: CollectConfig) -> None:
    found = checkpoint.load(config.run, "best", with_trainer=False)
    policy, task = saved.rebuild(found), saved.task(found)
    if task.env_id is None:
        raise UserError(f"{config.run} names no environment; collect from a run that does")
    target = task.aims[0] if config.target_return is None else task.aim(config.target_return)
    scale = reference_scores(task.env_id, user_scores=config.reference or None) or task.reference
    algo = str(found.metadata.get("algo"))
    asked = "" if target is None else f", asked for {target:g}"
    text = f"A policy of {algo} at step {found.step}{asked}."
    about = Description(config.name, task.env_id, algo, text, scale)
    episodes = sample_episodes(
        saved.agent_of(policy),
        task.env_id,
        config.steps,
        config.seed,
        target,
        deterministic=True,
        env_kwargs=task.env_kwargs,
    )
    _write(about, episodes, config.steps)


class _Protocol:
    """D4RL's qualities from one training."""

    def __init__(self, config: CollectConfig):
        self.config, self.env_id = config, config.env
        for quality in config.qualities:
            if quality not in QUALITIES:
                raise UserError(f"--qualities: unknown '{quality}'{nearest(quality, QUALITIES)}")
        folder = config.work_dir or Path("runs/collect") / f"{config.env}-{config.seed}"
        self.maker = DataMaker(config.env, config, folder, config.seed, config.device)
        self.known = reference_scores(config.env, user_scores=config.reference or None)

    def make_all(self) -> None:
        """Every quality that is not there yet, cheapest training first."""
        missing = [q for q in self.config.qualities if not exists(self._id(q))]
        for quality in [q for q in self.config.qualities if q not in missing]:
            print(f"{self._id(quality)}: is there already")
        if set(missing) - {"random"}:
            self._train(bool(NEEDS_EXPERT & set(missing)))
        for quality in missing:
            about = Description(
                self._id(quality), self.env_id, self.maker.kind.__name__, TEXTS[quality], self.scale
            )
            _write(about, self._episodes(quality), self.config.steps)

    def _train(self, to_the_end: bool) -> None:
        def enough(curve: Curve) -> bool:
            known = not to_the_end and self.known is not None
            return known and curve.first_reaching(_third(self.known)) is not None

        self.maker.train(enough, _show_training)

    @property
    def scale(self) -> ReferenceScores | None:
        """The known one, or from a random policy's return to the expert's."""
        if self.known is None and self.maker.curve.steps:
            low, high = self._random_return(), max(self.maker.curve.returns)
            if low < high:
                self.known = ReferenceScores(low, high, "measured while collecting")
        return self.known

    def _random_return(self, episodes: int = 100) -> float:
        agent = RandomAgent(make(self.env_id).action_space, self.config.seed)
        seeds = list(range(episodes))
        return float(rollout(agent, self.env_id, [None] * episodes, seeds).returns.mean())

    def _medium_step(self) -> int:
        scale = self.scale
        step = scale and self.maker.curve.first_reaching(_third(scale))
        if not step:
            best = max(self.maker.curve.returns, default=float("nan"))
            raise UserError(
                f"{self.env_id}: after {self.maker.steps:,} steps the best return is {best:.1f}, "
                "below a third of the expert's; give more --training-steps, or your own --reference"
            )
        return step

    def _episodes(self, quality: str) -> Iterator[Episode]:
        if quality == "medium-replay":
            yield from self.maker.replay(self._medium_step())
            return
        for agent in self._agents(quality):
            yield from sample_episodes(agent, self.env_id, self.config.steps, self.config.seed)

    def _agents(self, quality: str) -> Iterator:
        if quality == "random":
            yield RandomAgent(make(self.env_id).action_space, self.config.seed)
        if "medium" in quality:
            yield self.maker.policy_at(self._medium_step())
        if "expert" in quality:
            yield self.maker.policy_at(self.maker.curve.best())

    def _id(self, quality: str) -> str:
        return f"{self.config.name}/{quality}-v0"


TEXTS = {
    "random": "Actions drawn uniformly from the action space.",
    "medium": "Sampled from a policy stopped at a third of the expert's performance.",
    "medium-replay": "The replay buffer of a training up to a third of the expert's performance.",
    "expert": "Sampled from the best policy of a training.",
    "medium-expert": "The medium policy's episodes, then the expert's.",
}


def _third(scale: ReferenceScores) -> float:
    return scale.minimum + MEDIUM_SHARE * (scale.maximum - scale.minimum)


def _write(about: Description, episodes: Iterator[Episode], steps: int) -> Quality:
    quality = write_dataset(_shown(about.dataset_id, episodes, steps), about)
    print(f"{about.dataset_id}: {quality.describe(about.reference)}")
    print(f"  scale  {about.reference.describe() if about.reference else 'none is known'}")
    print(f"  under  {minari_root()}", flush=True)
    return quality


def _shown(name: str, episodes: Iterator[Episode], steps: int) -> Iterator[Episode]:
    """The episodes, with a line each time another quarter of `steps` is there."""
    done, returns = 0, []
    for episode in episodes:
        before, done = done, done + len(episode.rewards)
        returns.append(float(episode.rewards.sum()))
        if 4 * done // steps > 4 * before // steps:
            print(f"  {name}: {done:,} steps, mean return {np.mean(returns):.1f}", flush=True)
        yield episode


def _show_training(maker: DataMaker) -> None:
    curve, total = maker.curve, maker.options.training_steps
    print(f"  training {curve.steps[-1]:,}/{total:,}: return {curve.returns[-1]:.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 interrupted, 141 unread."""
    argv = sys.argv[1:] if argv is None else argv
    form = {"prog": "collect", "description": __doc__}
    return exit_code("collect", lambda: collect(parse(CollectConfig, argv, **form)))


if __name__ == "__main__":
    sys.exit(main())
