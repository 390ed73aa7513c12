"""Evaluate a trained run: `python evaluate.py RUN --episodes 100 --target-returns 3600,1800`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads must not starve the simulators

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.config import parse
from decision_s4.agents.eval_table import checked_row, table, write_rows
from decision_s4.agents.policy import Actor
from decision_s4.envs.errors import UserError
from decision_s4.envs.make import check_compatible, make
from decision_s4.envs.task import Task, with_environment


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a trained policy: returns with intervals, scores, videos."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as train.py printed it."""
    checkpoint: str = "best"
    """best, last or a step."""
    episodes: int = 100
    """Episodes for each target return."""
    target_returns: tuple[float, ...] = ()
    """Returns to ask for; default: those of the training."""
    env: str | None = None
    """Environment; default: that of the training."""
    video: bool = False
    """Also film one episode for each target return, into RUN/videos."""
    output: Path | None = None
    """CSV file to write; default: RUN/evaluation.csv."""
    seed: int = 1000
    """Seed of the first episode; the others count on from it."""
    threads: int = 1
    """CPU threads of the policy; the simulators have processes of their own."""


def evaluate(config: EvaluateConfig) -> None:
    """Print and write the table, and film if asked."""
    if config.episodes < 1:
        raise UserError(f"--episodes is {config.episodes}; use 1 or more")
    torch.set_num_threads(config.threads)
    found = checkpoint.load(config.run, config.checkpoint)
    policy = saved.rebuild(found)
    task = with_environment(
        Task.from_description(found.metadata["task"]), config.env, config.target_returns
    )
    env = make(task.env_id, **task.env_kwargs)
    check_compatible(env, policy.observation_space, policy.action_space, owner="the policy")
    env.close()

    console = Console()
    actor = Actor(policy)
    with console.status(f"{config.episodes} episodes for each target in {task.env_id} …"):
        rows = task.evaluate(actor, config.episodes, config.seed)
    rows = [checked_row(found.step, row) for row in rows]
    output = config.output or config.run / "evaluation.csv"
    write_rows(output, rows)
    console.print(f"checkpoint {config.checkpoint} (step {found.step}); {task.summary()}")
    console.print(table(rows, console.is_terminal), crop=False, no_wrap=True)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
    if config.video:
        from decision_s4.agents.pictures import film

        for _, video in film(actor, task, config.run / "videos", config.seed):
            console.print(f"video {video.path}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 2 after bad input, 130 after an interruption."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        argv = sys.argv[1:] if argv is None else argv
        evaluate(parse(EvaluateConfig, argv, prog="evaluate.py", description=__doc__))
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
