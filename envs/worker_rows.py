"""Rows of environments stepped by worker processes, where there are enough of them."""

import atexit
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from decision_s4.envs.errors import SimulatorError, UserError
from decision_s4.envs.local_rows import LocalRows
from decision_s4.envs.rows import MakeEnv, Outcome, Rows
from decision_s4.envs.spaces import Tree, map_tree


class WorkerRows:
    """Rows dealt out to worker processes: row i belongs to worker i modulo `workers`.

    Dealt so, each worker keeps its share of the rows that still run. Worth it from about sixteen
    rows a worker; threads are not, since most of a step is Python.
    """

    def __init__(self, make_env: MakeEnv, count: int, workers: int) -> None:
        # A forked worker knows the environments registered here and asks no `__main__` guard of
        # the caller's script; it touches neither torch nor a GPU.
        context = get_context("fork") if sys.platform == "linux" else get_context("spawn")
        self.workers, self.count = workers, count
        self.pipes: list[Connection] = []
        self.processes = []
        atexit.register(self.close)  # before multiprocessing asks them by SIGTERM and waits
        for first in range(workers):
            pipe, theirs = context.Pipe()
            arguments = (theirs, make_env, range(first, count, workers))
            self.processes.append(context.Process(target=_work, args=arguments, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(pipe)
        try:
            self.observation_space, self.action_space = self._receive_all()[0]
        except Exception:
            self.close()
            raise

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        rows = np.arange(self.count) if rows is None else rows
        return self._ask("reset", rows, lambda mine, local: (np.asarray(seeds)[mine], local))

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        def arguments(mine: np.ndarray, local: np.ndarray) -> tuple[np.ndarray, Tree]:
            return local, map_tree(lambda leaf: leaf[mine], action)

        return Outcome(*self._ask("step", rows, arguments))

    def _ask(self, method: str, rows: np.ndarray, arguments: Callable[..., tuple]) -> Any:
        """Call each worker that owns some of `rows`; `arguments` takes which of them are its own,
        (n,) bool, and their numbers there."""
        owner = rows % self.workers
        busy = np.unique(owner)
        for worker in busy:
            mine = owner == worker
            # Where one is dead, receiving says so.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.pipes[worker].send((method, arguments(mine, rows[mine] // self.workers)))
        parts = [self._receive(self.pipes[worker]) for worker in busy]
        place = np.searchsorted(busy, owner)
        if method == "reset":
            return self._merge(place, parts)
        return [self._merge(place, field) for field in zip(*parts, strict=True)]

    def close(self) -> None:
        atexit.unregister(self.close)
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()  # whatever it is doing, nothing of it is kept
            process.join()
            pipe.close()

    def _receive_all(self) -> list[Any]:
        return [self._receive(pipe) for pipe in self.pipes]

    def _receive(self, pipe: Connection) -> Any:
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise SimulatorError(
                "an environment worker process died; run with workers=1 to see why"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    @staticmethod
    def _merge(place: np.ndarray, parts: Iterable[Tree]) -> Tree:
        """Rows from parts: row i is the next one of part `place[i]`."""
        order = np.argsort(np.argsort(place, kind="stable"), kind="stable")
        return map_tree(lambda *leaves: np.concatenate(leaves)[order], *parts)


def _work(pipe: Connection, make_env: MakeEnv, numbers: range) -> None:
    """A worker's life: make its rows, then answer calls until its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a whole group's are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    try:
        rows = LocalRows(make_env, numbers)
        pipe.send((rows.observation_space, rows.action_space))
        parent = parent_process()
        assert parent is not None, "a worker has one"
        while pipe in wait([pipe, parent.sentinel]):
            method, arguments = pipe.recv()
            pipe.send(getattr(rows, method)(*arguments))
    except Exception as error:
        # Only these kinds travel: another's constructor may not survive the pipe.
        travels = isinstance(error, UserError | SimulatorError)
        answer = (type(error) if travels else RuntimeError)(str(error))
        answer.add_note(traceback.format_exc())
        pipe.send(answer)


def make_rows(make_env: MakeEnv, count: int, workers: int | None = None) -> Rows:
    """`count` rows in `workers` processes; 1 means this one, None decides by rows and cores."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cores or 1, count // 16)
    if workers <= 1:
        return LocalRows(make_env, range(count))
    return WorkerRows(make_env, count, min(workers, count))
