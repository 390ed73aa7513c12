"""Evaluate a trained run: `python evaluate.py RUN --episodes 100 --target-returns 3600,1800`."""

import os

from decision_s4.agents.interrupt import end_quietly

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators
if __name__ == "__main__":
    end_quietly()

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.checkpoint_files import Checkpoint
from decision_s4.agents.config import parse
from decision_s4.agents.devices import use_threads
from decision_s4.agents.eval_table import checked_row, print_table, write_rows
from decision_s4.agents.options import check_ranges
from decision_s4.agents.policy import Policy
from decision_s4.agents.program import exit_code
from decision_s4.agents.progress import stages
from decision_s4.agents.readings import ReadingOptions, agent_of_reading, data_for, readings
from decision_s4.envs.errors import UserError
from decision_s4.envs.task import Task, check_environment, with_environment
from decision_s4.envs.timestep import Agent

if TYPE_CHECKING:
    from decision_s4.agents.probes.explain import Plan


@dataclass(frozen=True)
class EvaluateOptions:
    """Play episodes with a trained policy: returns with intervals, scores, videos."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as train.py printed it."""
    checkpoint: str = "best"
    """best, last or the number of a step."""
    episodes: int = 100
    """Episodes for each target return."""
    target_returns: tuple[float, ...] = ()
    """Returns to ask for; none: those of the training."""
    hold_return: bool = True
    """Whether targets are held to the returns learned from, as in a training that holds them;
    --no-hold-return asks for them as they are."""
    reference_scores: tuple[float, ...] = ()
    """Returns that score 0 and 100; none: those of the training."""
    env: str | None = None
    """Gymnasium id of the environment; default: that of the training."""
    video: bool = False
    """Also film one episode for each target return, into RUN/videos; with --probe or --report
    another, explained-TARGET.mp4, with what mattered below each frame."""
    logged: str | None = None
    """Dataset to estimate each target's discounted value from, instead of playing (fitted Q
    evaluation): ranks runs where there is no simulator."""
    probe: tuple[str, ...] = ()
    """Explain the policy's actions by these probes, such as occlusion,lrp; docs/why.md shows what
    comes of it, docs/probes.md lists them."""
    report: Path | None = None
    """HTML file of the explanation; default: RUN/report.html. Without --probe, by three of them."""
    output: Path | None = None
    """CSV file to write; default: RUN/evaluation.csv; of another reading of the policy, such as
    --chunk-steps 100, RUN/evaluation-chunk-steps-100.csv."""
    seed: int = 1000
    """Seed of the first episode; the others count on from it."""
    threads: int = 1
    """CPU threads of the policy, 0 for all cores; the simulators have processes of their own."""


@dataclass(frozen=True)
class EvaluateConfig(ReadingOptions, EvaluateOptions):
    """All of them; `--help` shows those of the reading, which few need, last."""


def evaluate(config: EvaluateConfig) -> None:
    """Print and write the table, and film if asked. Raises UserError for bad input."""
    check_ranges(config)
    use_threads(config.threads)
    found = checkpoint.load(config.run, config.checkpoint, with_trainer=False)
    policy = saved.rebuild(found)
    if config.logged:
        _check_unplayed(config)
        _estimate(policy, config.logged, _task(found, config), config)
    else:
        _play(found, policy, config)


def _play(found: Checkpoint, policy: saved.Saved, config: EvaluateConfig) -> None:
    """Print and write the table; explain and film where that is asked for."""
    task, output = _played_task(found, policy, config), config.output or _default_output(config)
    _check_writable(output)
    plan, console = _planned_explanation(policy, config), Console()
    actor = agent_of_reading(policy, config, found.metadata.get("dataset"), config.run)
    _introduce(console, found, task, config)
    rows = [checked_row(found.step, row) for row in play(actor, task, config, console)]
    print_table(console, rows)
    write_rows(output, rows)
    _say(console, f"table   {output}")
    if plan and isinstance(policy, Policy):
        about = f"{task.env_id} · {policy.options.backbone} · {config.run}, step {found.step}"
        _explain(plan, policy, task, about, config, console)
    if config.video:
        _film(actor, task, config, console)


def _played_task(found: Checkpoint, policy: saved.Saved, config: EvaluateConfig) -> Task:
    """What is played, its environment made once to see that the policy fits."""
    chosen = config.env, config.target_returns, config.reference_scores
    task = with_environment(_task(found, config), *chosen)
    spaces = policy.observation_space, policy.action_space
    check_environment(task.environment, task.env_kwargs, *spaces, "the policy")
    return task


def _default_output(config: EvaluateConfig) -> Path:
    """Each reading has a table of its own: none overwrites another's."""
    parts = [f"-{name}-{value}" for name, value in readings(config).items()]
    return config.run / f"evaluation{''.join(parts)}.csv"


def _introduce(console: Console, found: Checkpoint, task: Task, config: EvaluateConfig) -> None:
    _say(console, f"policy  {config.run}, step {found.step}")
    _say(console, f"task    {task.summary()}")
    for line in task.held():
        _say(console, f"        {line}")
    _say(console, f"score   {task.scale()}")


def _explain(
    plan: "Plan", policy: Policy, task: Task, about: str, config: EvaluateConfig, console: Console
) -> None:
    """The report, and with --video the film of what mattered."""
    from decision_s4.agents.probes.explain import explain
    from decision_s4.agents.probes.film import film_explained

    with stages(console) as say:
        explain(plan, policy, task, about, config.seed, say)
        if config.video:
            say("the film of what mattered …")
            videos = config.run / "videos"
            for path in film_explained(policy, task, videos, config.seed, plan.probes):
                say(f"video   {path} (what mattered, frame by frame)")


def _film(actor: Agent, task: Task, config: EvaluateConfig, console: Console) -> None:
    from decision_s4.agents.pictures import film

    for _, video in film(actor, task, config.run / "videos", config.seed):
        _say(console, f"video   {video.path} (return {video.episodes.returns[0]:.0f})")


def _task(found: Checkpoint, config: EvaluateConfig) -> Task:
    """The training's task, its targets held where both the training and the user want that."""
    task = saved.task(found)
    if config.target_returns and task.target_returns == (None,):
        algo = found.metadata.get("algo")
        raise UserError(f"--target-returns: a policy of {algo} aims at no return; leave it out")
    return task if config.hold_return else replace(task, return_range=None)


def _estimate(policy: saved.Saved, logged: str, task: Task, config: EvaluateConfig) -> None:
    """Print what each target's episodes are worth by logged data alone."""
    from decision_s4.agents.fqe import FQEOptions, fitted_q_value

    data = data_for(policy, logged, "--logged")
    print(f"data    {data.summary()}")
    print(f"value   discounted by {FQEOptions.discount} a step, mean over the logged steps")
    for target in config.target_returns or task.target_returns or (0.0,):
        aim, asked = task.aim(target) or 0.0, "no return" if target is None else f"{target:g}"
        value = fitted_q_value(saved.agent_of(policy), data, aim, seed=config.seed)
        print(f"asked for {asked}: {value:.2f}", flush=True)


def _check_unplayed(config: EvaluateConfig) -> None:
    """Raise UserError where --logged would leave out what was asked for."""
    asked = {
        "--probe": bool(config.probe),
        "--report": bool(config.report),
        "--video": config.video,
        "--env": bool(config.env),
        **{f"--{name}": True for name in readings(config)},
    }
    left = [flag for flag, value in asked.items() if value]
    if left:
        raise UserError(
            f"--logged estimates without playing, and {left[0]} plays; leave out one of them"
        )


def _planned_explanation(policy: saved.Saved, config: EvaluateConfig) -> "Plan | None":
    """What the probes asked for will do, checked; None where none is asked for."""
    if not (config.probe or config.report):
        return None
    for name, value in readings(config).items():
        raise UserError(
            "--probe and --report explain the policy as it is, "
            f"not as --{name} {value} reads it; leave out one of them"
        )
    from decision_s4.agents.probes.explain import plan

    return plan(config.probe, config.report or config.run / "report.html", policy)


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def play(
    actor: Agent, task: Task, config: EvaluateConfig, console: Console
) -> list[dict[str, float | None]]:
    """The evaluation, with its progress on a terminal."""
    total = config.episodes * len(set(task.aims))
    with console.status(f"{total} episodes …") as status:

        def progress(step: int, running: int) -> None:
            status.update(f"step {step}: {total - running} of {total} episodes done")

        return task.evaluate(actor, config.episodes, config.seed, progress)


def _check_writable(output: Path) -> None:
    """Raise UserError where no file can be written, before anyone waits for its contents."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    special = output.exists() and not output.is_file()  # a device would be replaced by a file
    if special or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--output {output} cannot be written; give a file in a writable folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 interrupted, 141 unread."""
    argv = sys.argv[1:] if argv is None else argv

    def run() -> None:
        evaluate(parse(EvaluateConfig, argv, prog="evaluate.py", description=__doc__))

    return exit_code("evaluate.py", run)


if __name__ == "__main__":
    sys.exit(main())
