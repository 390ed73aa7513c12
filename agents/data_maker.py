"""An off-policy agent of stable-baselines3, trained with all kept that datasets are made of.

D4RL's protocol (arXiv 2004.07219, section 5): medium is the policy stopped early, at about a third
of the expert's performance; medium-replay is all that its replay buffer held by then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from decision_s4.agents import checkpoint
from decision_s4.agents.model_agent import ModelAgent, restore_trainer, trainer_state
from decision_s4.agents.models import networks_name
from decision_s4.agents.weights import load_weights_into
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make
from decision_s4.envs.rollout import rollout
from decision_s4.envs.spaces import LeafSpace, leaf_shape, leaf_spaces, map_tree
from decision_s4.envs.trajectories import Episode


@dataclass(frozen=True)
class MakerOptions:
    """How the agent that makes the data is trained."""

    training_steps: int = 1_000_000
    """Environment steps of the training; its best policy is the expert."""
    eval_every: int = 5_000
    """Environment steps between evaluations, each of which keeps the policy."""
    eval_episodes: int = 10
    """Episodes of an evaluation, acting deterministically."""
    save_every: int = 50_000
    """Environment steps between states from which an interrupted training goes on."""


@dataclass
class Curve:
    """Mean return of each evaluation, and the step of the training it was made at."""

    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    def first_reaching(self, target: float) -> int | None:
        """The step of the first evaluation with a mean return of `target` or more."""
        reached = (s for s, r in zip(self.steps, self.returns, strict=True) if r >= target)
        return next(reached, None)

    def best(self) -> int:
        """The step of the best evaluation."""
        return self.steps[int(np.argmax(self.returns))]


class DataMaker:
    """A training that can be interrupted and gone on with, in the folder `folder`.

    SAC for Box actions, DQN for Discrete ones, with stable-baselines3's defaults and a replay
    buffer that forgets nothing.
    """

    def __init__(self, env_id: str, options: MakerOptions, folder: Path, seed: int, device: str):
        self.env_id, self.options, self.folder, self.seed = env_id, options, folder, seed
        env = make(env_id)
        self.kind, self.policy_kind = _kinds(env_id, env.observation_space, env.action_space)
        self.model = self.kind(
            self.policy_kind, env, buffer_size=options.training_steps, seed=seed, device=device
        )
        self.curve = Curve()
        if (folder / "checkpoints").is_dir():
            self._restore()

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self.model.num_timesteps

    @property
    def buffer(self) -> ReplayBuffer:
        """All that was seen."""
        assert self.model.replay_buffer is not None, "off-policy"
        return self.model.replay_buffer

    def train(
        self, enough: Callable[[Curve], bool], progress: Callable[["DataMaker"], None]
    ) -> None:
        """Train to the end, or to the first evaluation after which `enough(curve)`."""
        left = self.options.training_steps - self.steps
        if left <= 0 or (self.curve.steps and enough(self.curve)):
            return
        callback = _Evaluations(self, enough, progress)
        self.model.learn(left, callback=callback, reset_num_timesteps=False)
        self.save()

    def evaluate(self) -> float:
        """Mean return over `eval_episodes`; the policy is kept beside it."""
        if self.curve.steps[-1:] == [self.steps]:  # gone on with from just before it
            return self.curve.returns[-1]
        count = self.options.eval_episodes
        seeds = list(range(10_000 + self.seed, 10_000 + self.seed + count))
        agent = ModelAgent(self.model.policy)
        played = rollout(agent, self.env_id, [None] * count, seeds, workers=1)
        self.curve.steps.append(self.steps)
        self.curve.returns.append(float(played.returns.mean()))
        self._keep_policy()
        return self.curve.returns[-1]

    def policy_at(self, step: int) -> ModelAgent:
        """The policy as it was evaluated at a step of the curve."""
        kept = checkpoint.load(self.folder / "policies", str(step))
        env = make(self.env_id)
        policy = self.kind(self.policy_kind, env, device="cpu", buffer_size=1).policy
        env.close()
        load_weights_into(policy, kept.weights, kept.path)
        return ModelAgent(policy)

    def replay(self, steps: int) -> Iterator[Episode]:
        """The episodes that ended within the first `steps` steps of the training."""
        ends = np.flatnonzero(self.buffer.dones[:steps, 0]) + 1
        for first, last in pairwise([0, *ends]):
            yield _episode(self.model, self.buffer, slice(first, last))

    def save(self) -> None:
        """Write the state to go on from."""
        trainer = {"model": trainer_state(self.model), "curve": vars(self.curve)}
        weights = self.model.policy.state_dict()
        # Within a callback the newest step is counted, but not in the buffer yet.
        filled = self.buffer.size()
        checkpoint.save(self.folder, filled, weights, trainer, {"env_id": self.env_id}, True)

    def _restore(self) -> None:
        found = checkpoint.load(self.folder)
        if found.metadata.get("env_id") != self.env_id:
            raise UserError(f"{self.folder}: made for {found.metadata}; choose another --work-dir")
        restore_trainer(self.model, found.trainer["model"], found.step)
        self.curve = Curve(**found.trainer["curve"])

    def _keep_policy(self) -> None:
        weights = self.model.policy.state_dict()
        folder, keep = self.folder / "policies", 10**9
        checkpoint.save(folder, self.steps, weights, {}, {"env_id": self.env_id}, False, keep)


def _kinds(
    env_id: str, observed: spaces.Space, done: spaces.Space
) -> tuple[type[SAC] | type[DQN], str]:
    """The algorithm and the policy that fit an environment's spaces."""
    if not isinstance(done, spaces.Box | spaces.Discrete):
        raise UserError(
            f"{env_id} takes {done}; a training here needs Box or Discrete actions; record a run "
            "of yours with --run"
        )
    return SAC if isinstance(done, spaces.Box) else DQN, networks_name(env_id, observed)


class _Evaluations(BaseCallback):
    """Evaluates and saves a maker while it trains."""

    def __init__(
        self,
        maker: DataMaker,
        enough: Callable[[Curve], bool],
        progress: Callable[[DataMaker], None],
    ):
        super().__init__()
        self.maker, self.enough, self.progress = maker, enough, progress

    def _on_step(self) -> bool:
        options, steps = self.maker.options, self.num_timesteps
        if steps % options.save_every == 0:
            self.maker.save()
        if steps % options.eval_every:
            return True
        self.maker.evaluate()
        self.progress(self.maker)
        return not self.enough(self.maker.curve)


def _episode(model: SAC | DQN, buffer: ReplayBuffer, steps: slice) -> Episode:
    def joined(space: LeafSpace, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        both = np.concatenate([before[steps, 0], after[steps.stop - 1]])
        return both.reshape(-1, *leaf_shape(space))  # the buffer keeps a number as an array of one

    space = leaf_spaces(model.observation_space)
    observations = map_tree(joined, space, buffer.observations, buffer.next_observations)
    actions = buffer.actions[steps, 0]
    if isinstance(model.action_space, spaces.Box):
        actions = model.policy.unscale_action(actions)
    else:
        actions = actions.reshape(-1, *(model.action_space.shape or ()))
    timeouts = buffer.timeouts[steps, 0].astype(bool)
    return Episode(
        observations,
        actions,
        buffer.rewards[steps, 0].astype(np.float64),
        buffer.dones[steps, 0].astype(bool) & ~timeouts,
        timeouts,
    )
