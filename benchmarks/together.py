"""A grid's trainings side by side in one process, on streams of a GPU: a launcher of d4rl.py.

A small policy's update fills a fraction of a GPU, and processes share one by turns, not at once.
Each run is as `train.py` makes it, but for its evaluation: of the last weights, by `evaluate.py` on
the CPU. A run that is cut leaves nothing.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

import torch
from interleaved import interleaved

from decision_s4.agents.devices import choose_device
from decision_s4.agents.settings import save_settings, settings
from decision_s4.agents.training import Training

if TYPE_CHECKING:
    from d4rl import Job

TOGETHER = 9  # trainings at a time
EVALUATE = (sys.executable, "-m", "decision_s4.evaluate")


def run_together(jobs: Iterable["Job"], processes: int, deadline: float) -> None:
    """Train TOGETHER jobs at a time, evaluate `processes` at a time."""
    torch.set_num_threads(1)
    cuda, evaluations = choose_device("auto").type == "cuda", []
    begun = (_trained(job, deadline) for job in jobs)
    with ThreadPoolExecutor(max(1, processes)) as pool:
        for job, seconds in interleaved(begun, TOGETHER, cuda):
            print(f"{job.folder}: {f'trained ({seconds:.0f} s)' if seconds else 'cut'}", flush=True)
            if seconds:
                evaluations.append(pool.submit(_evaluate, job, seconds))
        _report(evaluations)


def _trained(job: "Job", deadline: float) -> Generator[None, None, tuple["Job", float]]:
    """The job and how long it took, 0 for one that was cut; a pause after each update."""
    begin = time.monotonic()
    if time.time() > deadline:
        return job, 0.0
    config = settings([*job.flags, "--seed", str(job.seed)])
    run = Training.begin(config, choose_device(config.device))
    while not run.finished:
        run.update()
        yield
        if time.time() > deadline:
            return job, 0.0
    job.folder.mkdir(parents=True, exist_ok=True)
    save_settings(config, job.folder)
    run.save(job.folder)
    return job, time.monotonic() - begin


def _evaluate(job: "Job", seconds: float) -> str:
    config = settings(list(job.flags))
    command = [*EVALUATE, str(job.folder), "--checkpoint", "last", "--seed", str(job.seed)]
    command += ["--episodes", str(config.eval_episodes), "--output", str(job.folder / "eval.csv")]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    finished = {"seconds": seconds, "finished": done.returncode == 0}
    (job.folder / "seconds.json").write_text(json.dumps(finished))
    return f"{job.folder}: {done.stderr.strip().splitlines()[-1] if done.returncode else 'done'}"


def _report(evaluations: list["Future[str]"]) -> None:
    for each in as_completed(evaluations):
        print(each.result(), flush=True)
