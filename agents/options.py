"""Settings that every algorithm's run has."""

from dataclasses import dataclass
from pathlib import Path

from decision_s4.envs.datasets import DEFAULT_DATASET


@dataclass(frozen=True)
class RunOptions:
    """What to train on, for how long, and what to record of it."""

    algo: str = "decision-s4"
    """Algorithm; configs/<algo>.yaml holds its settings."""
    dataset: str = DEFAULT_DATASET
    """Minari id or folder, D4RL id or HDF5 file; a comma list combines several."""
    env: str | None = None
    """Environment to evaluate in; default: the dataset's own. 'none' evaluates nowhere."""
    run_dir: Path | None = None
    """Folder of this run; default: runs/<algo>/<dataset>/<seed>-<time>."""
    resume: Path | None = None
    """Folder of a run to go on with, exactly where its last checkpoint stands."""
    steps: int = 4000
    """Updates."""
    batch_steps: int = 1000
    """Environment steps a batch holds at least: whole episodes, laid end to end."""
    eval_every: int = 1000
    """Updates between evaluations; each also writes a checkpoint."""
    eval_episodes: int = 20
    """Episodes of an evaluation, for each target return."""
    target_returns: tuple[float, ...] = ()
    """Returns to ask for; default: the task's usual ones, or the dataset's best and half of it."""
    video: bool = True
    """Record a video of the last policy, one episode a target return."""
    log_every: int = 50
    """Updates between two points of a training curve."""
    seed: int = 0
    """Seed of weights, data order and evaluation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    threads: int = 0
    """CPU threads of the training; 0 takes all cores."""
