"""D4RL's datasets of one task from one training: random, medium, medium-replay and so on.

Medium is a policy at about a third of the expert's performance (arXiv 2004.07219, section 5).
"""

from collections.abc import Iterator, Sequence

from decision_s4.agents.data_maker import Curve, DataMaker
from decision_s4.agents.dataset_writer import write
from decision_s4.agents.random_agent import RandomAgent
from decision_s4.envs.collect import sample_episodes
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.make import make
from decision_s4.envs.minari_writer import Description, exists
from decision_s4.envs.rollout import rollout
from decision_s4.envs.scores import ReferenceScores
from decision_s4.envs.timestep import Agent
from decision_s4.envs.trajectories import Episode

TEXTS = {
    "random": "Actions drawn uniformly from the action space.",
    "medium": "Sampled from a policy stopped at a third of the expert's performance.",
    "medium-replay": "The replay buffer of a training up to a third of the expert's performance.",
    "expert": "Sampled from the best policy of a training.",
    "medium-expert": "The medium policy's episodes, then the expert's.",
}
QUALITIES = tuple(TEXTS)
NEEDS_EXPERT = {"expert", "medium-expert"}
MEDIUM_SHARE = 1 / 3  # of the expert's performance: D4RL's "approximately 1/3"


class Protocol:
    """Makes datasets of the qualities asked for, `name`/<quality>-v0.

    Args:
        maker: the training.
        name: what their Minari ids begin with.
        steps: of a sampled dataset, at least.
        known: returns of a random policy and of an expert; None: those of the training.
    """

    def __init__(self, maker: DataMaker, name: str, steps: int, known: ReferenceScores | None):
        self.maker, self.name, self.steps, self.known = maker, name, steps, known

    def make(self, qualities: Sequence[str]) -> None:
        """Those that are not there yet. Raises UserError for a training that got nowhere."""
        missing = [quality for quality in qualities if not exists(self._id(quality))]
        for quality in [quality for quality in qualities if quality not in missing]:
            print(f"{self._id(quality)}: is there already")
        if set(missing) - {"random"}:
            self._train(bool(NEEDS_EXPERT & set(missing)))
        for quality in missing:
            write(self._description(quality), self._episodes(quality), self.steps)

    @property
    def scale(self) -> ReferenceScores | None:
        """The known one, or from a random policy's return to the expert's."""
        if self.known is None and self.maker.curve.steps:
            low, high = self._random_return(), max(self.maker.curve.returns)
            if low < high:
                self.known = ReferenceScores(low, high, "measured while collecting")
        return self.known

    def _id(self, quality: str) -> str:
        return f"{self.name}/{quality}-v0"

    def _description(self, quality: str) -> Description:
        algorithm, text = self.maker.kind.__name__, TEXTS[quality]
        return Description(self._id(quality), self.maker.env_id, algorithm, text, self.scale)

    def _train(self, to_the_end: bool) -> None:
        known = None if to_the_end else self.known

        def enough(curve: Curve) -> bool:
            return known is not None and curve.first_reaching(_third(known)) is not None

        self.maker.train(enough, _show_training)

    def _episodes(self, quality: str) -> Iterator[Episode]:
        if quality == "medium-replay":
            yield from self.maker.replay(self._medium_step())
            return
        for agent in self._agents(quality):
            yield from sample_episodes(agent, self.maker.env_id, self.steps, self.maker.seed)

    def _agents(self, quality: str) -> Iterator[Agent]:
        if quality == "random":
            yield self._random_agent()
        if "medium" in quality:
            yield self.maker.policy_at(self._medium_step())
        if "expert" in quality:
            yield self.maker.policy_at(self.maker.curve.best())

    def _medium_step(self) -> int:
        scale = self.scale
        step = scale and self.maker.curve.first_reaching(_third(scale))
        if not step:
            best = max(self.maker.curve.returns, default=float("nan"))
            raise UserError(
                f"{self.maker.env_id}: after {self.maker.steps:,} steps the best return is "
                f"{best:.1f}, below a third of the expert's; give more --training-steps, or your "
                "own --reference"
            )
        return step

    def _random_return(self, episodes: int = 100) -> float:
        seeds, targets = list(range(episodes)), [None] * episodes
        return float(
            rollout(self._random_agent(), self.maker.env_id, targets, seeds).returns.mean()
        )

    def _random_agent(self) -> RandomAgent:
        env = make(self.maker.env_id)
        env.close()
        return RandomAgent(env.action_space, self.maker.seed)


def check_qualities(qualities: Sequence[str]) -> None:
    """Raise UserError for one that is unknown."""
    for quality in qualities:
        if quality not in QUALITIES:
            raise UserError(f"--qualities: unknown '{quality}'{nearest(quality, QUALITIES)}")


def _third(scale: ReferenceScores) -> float:
    return scale.minimum + MEDIUM_SHARE * (scale.maximum - scale.minimum)


def _show_training(maker: DataMaker) -> None:
    curve, total = maker.curve, maker.options.training_steps
    print(f"  training {curve.steps[-1]:,}/{total:,}: return {curve.returns[-1]:.1f}", flush=True)
