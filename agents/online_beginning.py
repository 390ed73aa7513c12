"""What runs of ds4-online are asked for, and the policy, task and logged steps they begin from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.checkpoint_files import Checkpoint
from decision_s4.agents.config import read_setting
from decision_s4.agents.ds4_online import DS4OnlineOptions, check_continuous
from decision_s4.agents.explorer import ExplorationOptions
from decision_s4.agents.flags import hyphened
from decision_s4.agents.kept import kept
from decision_s4.agents.options import RunOptions, part
from decision_s4.agents.policy import Policy, PolicyOptions
from decision_s4.agents.run_dir import CONFIG_FILE
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs import datasets
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import make
from decision_s4.envs.scores import reference_scores
from decision_s4.envs.task import Task, check_environment, with_environment
from decision_s4.envs.trajectories import Trajectories


@dataclass(frozen=True)
class DS4OnlineConfig(ExplorationOptions, DS4OnlineOptions, PolicyOptions, RunOptions):
    """Train a policy in an environment by Decision S4's recurrent actor-critic."""

    env: str | None = kept(None)
    """Gymnasium id of the environment to learn in; default: that of the run begun from."""
    device: str = "cpu"
    """cpu alone: it learns from single steps, which are too small for a GPU."""

    steps: int = 200_000
    """Environment steps, those of all environments together."""
    eval_every: int = 20_000
    """Environment steps between evaluations; each also writes a checkpoint."""
    log_every: int = 1000
    """Environment steps between two points of a curve, a round's at least."""
    from_run: Annotated[Path | None, tyro.conf.arg(name="from")] = kept(None)
    """Folder of the run whose best policy, sizes included, training begins with; none: an untrained
    one."""
    target_returns: tuple[float, ...] = ()
    """The return to ask for at first; none: that of the run begun from, or 0."""
    dataset: str | None = kept(None)
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
    replay_size: int = kept(200000)
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

    def inherited(self) -> dict[str, Any]:
        """What the policy begun from is made of.

        Raises UserError where --from names none that can go on.
        """
        return {} if self.from_run is None else vars(_begun_from(self.from_run)[1].options)


def logged_dataset(config: DS4OnlineConfig) -> str | None:
    """The dataset that fills the replay; None where there is none."""
    if config.dataset is not None:
        return None if config.dataset == "none" else config.dataset
    path = config.from_run and config.from_run / CONFIG_FILE
    return read_setting(path, "dataset") if path and path.is_file() else None


def logged_steps(name: str, policy: SequencePolicy) -> Trajectories:
    """The dataset. Raises UserError where there is none, or its spaces are not the policy's."""
    try:
        data = datasets.load(name)
    except UserError as error:
        raise UserError(f"{error}; --dataset none begins with an empty replay") from error
    if (reason := saved.misfit(policy, data)) is not None:
        raise UserError(f"--dataset {data.name}: {reason}; give another, or none")
    return data


def beginning(config: DS4OnlineConfig) -> tuple[SequencePolicy, Task]:
    """The policy to begin with and its task.

    Raises UserError for a folder that is no run, a policy that is not recurrent, or an environment
    whose spaces are not the policy's.
    """
    if len(config.target_returns) > 1:
        asked = ",".join(f"{target:g}" for target in config.target_returns)
        raise UserError(f"--target-returns {asked}: ds4-online asks for one return; give one")
    if config.from_run is None:
        return _untrained(config)
    resumed = config.resume if config.resume and checkpoint.any_in(config.resume) else None
    found, policy = _begun_from(resumed or config.from_run)  # the latter may be gone by now
    # It is to ask for more than was logged, and plays for as long as it lasts.
    offline = replace(saved.task(found), return_range=None, learned_steps=None)
    task = with_environment(
        offline, config.env, config.target_returns or offline.target_returns[:1]
    )
    spaces = policy.observation_space, policy.action_space
    owner = f"the policy of {config.from_run}"
    check_environment(task.environment, task.env_kwargs, *spaces, owner)
    return policy, task


def _begun_from(folder: Path) -> tuple[Checkpoint, SequencePolicy]:
    """A run's best checkpoint and its policy. Raises UserError for one that is not recurrent."""
    try:
        found = checkpoint.load(folder, "best", with_trainer=False)
    except UserError as error:
        raise UserError(f"--from {error}") from error
    policy = saved.rebuild(found)
    if type(policy) is not SequencePolicy:
        kind = f"--algo {found.metadata['algo']}"
        if isinstance(policy, Policy):
            own = policy.options
            kind = f"tokens '{own.tokens}' and context_mode '{own.context_mode}'"
        raise UserError(
            f"--from {folder}: a policy of {kind} is not one that ds4-online can go on with; give "
            "a run of --algo decision-s4"
        )
    return found, policy


def _untrained(config: DS4OnlineConfig) -> tuple[SequencePolicy, Task]:
    if config.env in (None, "none"):
        raise UserError("ds4-online learns in an environment; give --env, or --from and a run")
    if (config.tokens, config.context_mode) != ("step", "recurrent"):
        raise UserError(
            f"--tokens {config.tokens} --context-mode {config.context_mode}: ds4-online goes on "
            "from a recurrent state, one token a step; leave both out"
        )
    for name in ("dropout", "observation_noise"):
        if value := getattr(config, name):
            raise UserError(
                f"--{hyphened(name)} {value:g}: ds4-online learns without; leave it out"
            )
    for name in ("anchor_weight", "anchor_final"):
        if (value := getattr(config, name)) not in (0, getattr(DS4OnlineOptions, name)):
            raise UserError(
                f"--{hyphened(name)} {value:g} without --from: an untrained policy is none to stay "
                "near; leave it out, or give --from and a run"
            )
    env = make(config.env)
    check_continuous(env.action_space)
    policy = SequencePolicy(env.observation_space, env.action_space, part(config, PolicyOptions))
    env.close()
    targets = config.target_returns or (0.0,)
    return policy, Task(config.env, targets, {}, reference_scores(config.env))
