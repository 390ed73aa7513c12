"""Settings that every algorithm's run has, and the ranges in which settings make sense."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from decision_s4.agents.kept import kept
from decision_s4.envs.dataset_sources import DEFAULT_DATASET
from decision_s4.envs.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


class Range(NamedTuple):
    """Values from `lowest` to `highest`, both included, and how to say so."""

    lowest: float
    highest: float
    words: str


LARGEST_RETURN = 1e30  # policies read float32
COUNT = Range(1, 1e15, "1 or more")
WIDTH = Range(1, 16384, "1 to 16384")
POSITIVE = Range(1e-30, 1e30, "a number above 0")
NOT_NEGATIVE = Range(0, 1e15, "0 or more")
FRACTION = Range(0, 1 - 1e-12, "0 or more, and less than 1")
NAMES: dict[Range, str] = {
    COUNT: """
        steps batch_steps log_every eval_every save_every training_steps context_steps
        relabel_steps critic_width rollout_steps epochs minibatches round_steps batch_size
        replay_size critics critic_layers actor_every target_every policy_delay
    """,
    Range(1, 65536, "1 to 65536"): "rows environments",
    Range(1, 10**6, "1 to 1000000"): "episodes eval_episodes",
    Range(1, 1024, "1 to 1024"): "workers",
    WIDTH: "d_model n_layers d_embed lstm_width hidden",
    POSITIVE: """
        learning_rate recurrence_learning_rate gradient_clip return_scale
        critic_learning_rate actor_learning_rate
    """,
    NOT_NEGATIVE: """
        warmup_steps weight_decay observation_noise relabel_rounds value_weight
        range_weight distill_steps value_coefficient entropy_coefficient target_kl noise
        noise_final noise_steps target_noise critic_warmup updates_per_step anchor_weight
        anchor_final warmup_updates target_raise target_noise_limit temperature
    """,
    FRACTION: "dropout average_decay expectile",
    Range(1, 10**8, "1 to 100000000"): "max_episode_steps",
    Range(0, 64, "0 to 64"): "mlp_ratio",
    Range(1e-09, 1, "a number above 0, 1 at most"): "data_fraction",
    Range(1.01, 1000, "1.01 to 1000"): "range_limit",
    Range(0, 255, "0 to 255; 0 for none"): "polynomial",
    Range(0, 1, "0 to 1"): "value_discount discount trace clip",
    Range(1e-09, 1, "above 0, 1 at most"): "critic_target_rate target_rate",
    Range(0, 2**32 - 1, "0 to 4294967295"): "seed",
    Range(0, 10**8, "0 to 100000000; 0 for none"): "chunk_steps keep_steps",
    Range(0, 1024, "0 to 1024; 0 takes all cores"): "threads",
}
"""Settings by the range in which they make sense."""
RANGES = {name: span for span, names in NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class RunOptions:
    """For how long to train, and what to record of it."""

    algo: str = kept("decision-s4")
    """From logged data: decision-s4, decision-transformer, decision-mamba, bc (behaviour cloning),
    10%-bc, td3-bc or iql. In an environment: ppo or ds4-online; to compare with,
    stable-baselines3's sac, td3, sb3-ppo and recurrent-ppo. The settings of configs/<algo>.yaml
    become the defaults; --algo NAME --help shows those of one."""
    env: str | None = None
    """Gymnasium id to evaluate in; default: the dataset's own. 'none' evaluates nowhere."""
    run_dir: Path | None = None
    """Folder of this run; default: runs/<algo>/<dataset or env>/<seed>-<time>."""
    resume: Path | None = None
    """Folder of a run to go on with, exactly where its last checkpoint stands."""
    steps: int = 4000
    """Updates of the weights, one batch each."""
    eval_every: int = 1000
    """Updates between evaluations; each also writes a checkpoint."""
    eval_episodes: int = 20
    """Episodes of an evaluation, for each target return."""
    video: bool = True
    """Record a video of the last policy, one episode a target return."""
    log_every: int = 50
    """Updates between two points of a training curve."""
    seed: int = kept(0)
    """Seed of weights, data order and evaluation."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    threads: int = 1
    """CPU threads of the training, 0 for all cores; more pay for wide policies or large batches."""

    @property
    def subject(self) -> str:
        """What the run learns from, after which its folder is named."""
        return self.env or "none"

    def inherited(self) -> dict[str, Any]:
        """Settings that another run has made for this one, which keeps them."""
        return {}


@dataclass(frozen=True)
class DataOptions(RunOptions):
    """What logged trajectories to train on, and how to judge what was learned from them."""

    dataset: str = DEFAULT_DATASET
    """Minari id or folder, D4RL id or HDF5 file; a comma list combines several."""
    data_fraction: float = kept(1.0)
    """Share of the episodes to train on, those of the highest returns; .1 makes bc 10%-bc."""
    batch_steps: int = 1000
    """Environment steps a batch holds at least; with torchrun, in each process."""
    sampling: Literal["episodes", "windows"] = kept("episodes")
    """What a batch holds: whole episodes laid end to end, or random windows of context_steps."""
    target_returns: tuple[float, ...] = ()
    """Returns to ask for; none: the task's usual ones, or the dataset's best and half of it."""
    reference_scores: tuple[float, ...] = ()
    """Returns that score 0 and 100; none: those stored with the dataset, else those of its task."""
    probes: tuple[str, ...] = ()
    """Cheap probes to log at each evaluation, such as gradient-x-input; see docs/probes.md."""

    @property
    def subject(self) -> str:
        """The dataset."""
        return self.dataset


def part(config: object, options: type[D]) -> D:
    """Those of the settings that the dataclass `options` holds."""
    return options(**{field.name: getattr(config, field.name) for field in fields(options)})


def check_ranges(config: Any) -> None:
    """Raise UserError for the first number among a program's settings that makes no sense."""
    for name in [name for name in vars(config) if name in RANGES]:
        value, (lowest, highest, words) = getattr(config, name), RANGES[name]
        for each in value if isinstance(value, tuple) else (value,):
            if not lowest <= each <= highest:
                raise UserError(f"--{name.replace('_', '-')} is {each}; use {words}")
    for target in getattr(config, "target_returns", ()):
        if not abs(target) <= LARGEST_RETURN:
            raise UserError(f"--target-returns has {target}; use finite numbers, as 3600,1800")
