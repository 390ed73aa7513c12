"""Runs of ds4-online: what they begin from, their rounds of acting and learning, their checkpoints.

A checkpoint holds weights, optimisers, targets, replay, counters and generators, and what is
learned from the same replay goes on bit for bit. The environments' states are in none: on
resuming, new episodes begin where some were under way.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import tyro
from torch import Tensor

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.actor import Actor
from decision_s4.agents.config import read_setting
from decision_s4.agents.ds4_online import DS4OnlineLearner, DS4OnlineOptions, check_continuous
from decision_s4.agents.explorer import ExplorationOptions, Explorer
from decision_s4.agents.logged_replay import remember
from decision_s4.agents.options import RunOptions, part
from decision_s4.agents.policy import PolicyOptions, SequencePolicy, parameter_count
from decision_s4.agents.replay import Replay
from decision_s4.agents.resumable import Resumable
from decision_s4.agents.rng import seed_everything
from decision_s4.agents.run import Row
from decision_s4.envs import datasets
from decision_s4.envs.errors import DivergedError, UserError
from decision_s4.envs.make import make
from decision_s4.envs.rollout import open_rows
from decision_s4.envs.scores import reference_scores
from decision_s4.envs.task import Task, check_environment, with_environment
from decision_s4.envs.trajectories import Trajectories

EXPLODED = 10.0
"""Values this many times beyond what the largest reward, for ever, adds up to are no values."""


@dataclass(frozen=True)
class DS4OnlineConfig(ExplorationOptions, DS4OnlineOptions, PolicyOptions, RunOptions):
    """Train a policy in an environment by Decision S4's recurrent actor-critic."""

    fixed: ClassVar[frozenset[str]] = frozenset(
        {"from_run", "dataset", "env", "freeze", "store_states", "replay_size"}
        | {"critics", "critic_width", "critic_layers", "critic_norm", "critic_return"}
    )

    device: str = "cpu"
    """cpu alone: it learns from single steps, which are too small for a GPU."""

    steps: int = 200_000
    """Environment steps, those of all environments together."""
    eval_every: int = 20_000
    """Environment steps between evaluations; each also writes a checkpoint."""
    log_every: int = 1000
    """Environment steps between two points of a curve, a round's at least."""
    from_run: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of the run whose best policy, sizes included, training begins with; none: an untrained
    one."""
    target_returns: tuple[float, ...] = ()
    """The return to ask for at first; none: that of the run begun from, or 0."""
    dataset: str | None = None
    """Logged trajectories that fill the replay at first: Minari id or folder, D4RL id or HDF5 file;
    default: those that the run begun from has learned from. 'none' begins with an empty replay."""
    environments: int = 8
    """Environments that are acted in at a time."""
    workers: int = 1
    """Processes that step them; 1: this one."""
    round_steps: int = 128
    """Environment steps between two times of learning and renewing the policy that acts."""
    updates_per_step: float = 0.25
    """Updates for each environment step; a round has at least one."""
    batch_size: int = 256
    """Transitions an update learns from."""
    replay_size: int = 200000
    """Transitions that are kept."""
    save_replay: bool = True
    """Whether checkpoints hold the replay, some 300 MB when full; without it, a resumed run begins
    with the logged steps alone."""
    warmup_updates: int = 10000
    """Updates of the critics alone at the end of their warm-up, beside those of its steps."""

    @property
    def subject(self) -> str:
        """Where it learns, or else what the run that it goes on from learned from."""
        return self.env or logged_dataset(self) or "none"


class OnlineTraining(Resumable):
    """A run of ds4-online."""

    rate_tag = "time/fps"

    def __init__(
        self, config: DS4OnlineConfig, policy: SequencePolicy, task: Task, device: torch.device
    ):
        if device.type != "cpu":
            raise UserError(f"--device {device}: ds4-online trains on the CPU; use --device cpu")
        self.config, self._begun_task, self.step = config, task, 0
        options = part(config, DS4OnlineOptions)
        pretrained = config.from_run is not None
        self.learner = DS4OnlineLearner(policy, options, pretrained, config.hindsight)
        self.replay = Replay(config.replay_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        rows = open_rows(task.env_id, config.environments, task.env_kwargs, config.workers)
        exploration = part(config, ExplorationOptions)
        target, seed = task.target_returns[0], 10**6 * (config.seed + 1)
        self.explorer = Explorer(rows, config.environments, exploration, target, seed)
        self.largest_reward, self.due = 0.0, 0.0

    @classmethod
    def begin(cls, config: DS4OnlineConfig, device: torch.device) -> "OnlineTraining":
        """A run at its first step. Raises UserError for what cannot be trained."""
        seed_everything(config.seed)
        return cls(config, *beginning(config), device)

    @property
    def learning_rate(self) -> float:
        """The actor's."""
        return self.learner.learning_rate

    def introduction(self) -> list[str]:
        """What learns, where, and from what."""
        policy, source = self.learner.policy, self.config.from_run or "an untrained policy"
        return [
            f"policy  {policy.options.backbone}, {parameter_count(policy):,} parameters, "
            f"from {source}",
            f"critic  {parameter_count(self.learner.critic):,} parameters",
            f"data    {logged_dataset(self.config) or 'none: the replay begins empty'}",
            f"task    {self.task.summary()}",
            f"score   {self.task.scale()}",
        ]

    def update(self) -> tuple[dict[str, Tensor], int]:
        """A round: act, then learn from the replay."""
        config, before = self.config, self.step
        if not len(self.replay):
            self._remember()
        self.explorer.act_as(self.learner.policy, self.learner.stored)
        returns = self._act(max(1, config.round_steps // config.environments))
        self.step = self.explorer.steps
        metrics = self._learn(self.step - before) | self._books(returns)
        self._check(metrics)
        return metrics, self.step - before

    def evaluate(self) -> list[Row]:
        """A row of eval.csv for the smoothed policy, asked for the return that is aimed at now."""
        actor = Actor(self.acting_policy)
        rows = self.task.evaluate(actor, self.config.eval_episodes, self.config.seed)
        return [row | {"target_return": None} for row in rows]

    @property
    def acting_policy(self) -> SequencePolicy:
        """The smoothed one."""
        return self.learner.averaged_policy

    @property
    def task(self) -> Task:
        """The task, asked for the return that is aimed at now."""
        return replace(self._begun_task, target_returns=(self.explorer.target,))

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on, apart from the global random generators."""
        return {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict() if self.config.save_replay else None,
            "explorer": self.explorer.state_dict(),
            "generator": self.generator.get_state(),
            "largest_reward": self.largest_reward,
            "due": self.due,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on where `state_dict` was taken, at `step`; every row begins a new episode."""
        for name in ("learner", "replay", "explorer"):
            if state[name] is not None:
                getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.due, self.largest_reward = float(state["due"]), float(state["largest_reward"])
        self.step = step

    def draw(self, logger: Any, run_dir: Path) -> None:
        """A video of the smoothed policy."""
        from decision_s4.agents.pictures import film_into

        actor = Actor(self.acting_policy)
        film_into(logger, run_dir, actor, self.task, self.config.seed, self.step)

    def _remember(self) -> None:
        """Fill the replay with logged steps. Raises UserError for data of other spaces."""
        name = logged_dataset(self.config)
        if name is None:
            return
        data, policy = _loaded(name), self.learner.policy
        for name in ("observation_space", "action_space"):
            ours, theirs = getattr(policy, name), getattr(data, name)
            if ours != theirs:
                raise UserError(
                    f"--dataset {data.name}: its {name} is {theirs}, the policy's {ours}; give "
                    "another, or none"
                )
        remember(self.replay, data, policy, self.learner.stored, self.explorer.target)

    def _act(self, times: int) -> list[float]:
        ended = [self.explorer.step(self.replay, self.learner.updates) for _ in range(times)]
        return [value for returns in ended for value in returns]

    def _learn(self, steps: int) -> dict[str, Tensor]:
        self.due += steps * self.config.updates_per_step
        count, metrics = max(1, int(self.due)), {}
        self.due = max(0.0, self.due - count)
        trains_actor = self.step > self.config.critic_warmup
        if trains_actor and self.step - steps <= self.config.critic_warmup:
            self._evaluate_critics(self.config.warmup_updates)
        self.learner.set_progress(self._progress())
        for _ in range(count):
            batch = self.replay.sample(self.config.batch_size, self.generator)
            metrics |= self.learner.update(batch, trains_actor, self.generator)
        return metrics

    def _evaluate_critics(self, count: int) -> None:
        for _ in range(count):
            batch = self.replay.sample(self.config.batch_size, self.generator)
            self.learner.update(batch, False, self.generator)

    def _progress(self) -> float:
        config = self.config
        after_warmup = max(1, config.steps - config.critic_warmup)
        return min(1.0, max(0.0, (self.step - config.critic_warmup) / after_warmup))

    def _books(self, returns: list[float]) -> dict[str, Tensor]:
        explorer = self.explorer
        books = {"target_return": explorer.target, "noise": explorer.noise}
        if returns:
            books["ep_rew_mean"] = sum(returns) / len(returns)
        return {f"rollout/{name}": torch.tensor(value) for name, value in books.items()}

    def _check(self, metrics: dict[str, Tensor]) -> None:
        """Stop before a checkpoint of a run that diverged."""
        newest = self.replay.recent(self.config.round_steps).reward
        self.largest_reward = max(self.largest_reward, float(newest.abs().max()))
        bound = EXPLODED * self.largest_reward / max(1e-9, 1 - self.learner.options.discount)
        for name, value in metrics.items():
            wrong = not math.isfinite(value)
            if wrong or (name in ("value", "actor_value") and abs(value) > bound):
                raise DivergedError(
                    f"training diverged: {name} is {float(value):g} at environment step "
                    f"{self.step}, rewards were {self.largest_reward:g} at most; lower "
                    f"--critic-learning-rate {self.config.critic_learning_rate:g}, "
                    f"--actor-learning-rate {self.config.actor_learning_rate:g} or "
                    f"--discount {self.config.discount:g}"
                )


def logged_dataset(config: DS4OnlineConfig) -> str | None:
    """The dataset that fills the replay; None where there is none."""
    if config.dataset is not None:
        return None if config.dataset == "none" else config.dataset
    path = config.from_run and config.from_run / "config.yaml"
    return read_setting(path, "dataset") if path and path.is_file() else None


def _loaded(name: str) -> Trajectories:
    try:
        return datasets.load(name)
    except UserError as error:
        raise UserError(f"{error}; --dataset none begins with an empty replay") from error


def beginning(config: DS4OnlineConfig) -> tuple[SequencePolicy, Task]:
    """The policy to begin with and its task.

    Raises UserError for a folder that is no run, a policy that is not recurrent, or an environment
    whose spaces are not the policy's.
    """
    if config.from_run is None:
        return _untrained(config)
    found = checkpoint.load(config.from_run, "best", with_trainer=False)
    policy = saved.rebuild(found)
    if type(policy) is not SequencePolicy:
        raise UserError(
            f"--from {config.from_run}: a policy of tokens '{policy.options.tokens}' and "
            f"context_mode '{policy.options.context_mode}' has no recurrent state to store; give a "
            "run of --algo decision-s4"
        )
    _check_sizes(config, policy)
    # It is to ask for more than was logged, and plays for as long as it lasts.
    offline = replace(saved.task(found), return_range=None, learned_steps=None)
    task = with_environment(offline, config.env, config.target_returns[:1])
    spaces = policy.observation_space, policy.action_space
    check_environment(task.env_id, task.env_kwargs, *spaces, f"the policy of {config.from_run}")
    return policy, task


def _check_sizes(config: DS4OnlineConfig, policy: SequencePolicy) -> None:
    """Raises UserError for a size asked for that the policy begun from hasn't."""
    asked, usual, has = part(config, PolicyOptions), PolicyOptions(), policy.options
    for name, value in vars(asked).items():
        if value not in (getattr(usual, name), getattr(has, name)):
            raise UserError(
                f"--{name.replace('_', '-')} {value}: the policy of {config.from_run} has "
                f"{getattr(has, name)}, which stays; leave it out"
            )


def _untrained(config: DS4OnlineConfig) -> tuple[SequencePolicy, Task]:
    if config.env in (None, "none"):
        raise UserError("ds4-online learns in an environment; give --env, or --from and a run")
    if (config.tokens, config.context_mode) != ("step", "recurrent"):
        raise UserError(
            f"--tokens {config.tokens} --context-mode {config.context_mode}: ds4-online goes on "
            "from a recurrent state, one token a step; leave both out"
        )
    env = make(config.env)
    check_continuous(env.action_space)
    policy = SequencePolicy(env.observation_space, env.action_space, part(config, PolicyOptions))
    env.close()
    targets = config.target_returns[:1] or (0.0,)
    return policy, Task(config.env, targets, {}, reference_scores(config.env))
