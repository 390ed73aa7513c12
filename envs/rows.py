"""Many environments of one kind, one a row, stepped here or by worker processes."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_s4.envs.actions import space_value
from decision_s4.envs.errors import SimulatorError, UserError
from decision_s4.envs.spaces import Tree, leaf_spaces, leaves, map_tree, space_tree

MakeEnv = Callable[[], gym.Env]


class Outcome(NamedTuple):
    """What one step gave the n rows that took it."""

    observation: Tree  # (n, …); a finished row's own last observation, never the next episode's
    reward: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool


def check_finite(outcome: Outcome, step: int) -> None:
    """Raises SimulatorError where an environment's rewards or observations are no numbers."""
    parts = {"rewards": outcome.reward, "observations": outcome.observation}
    for name, tree in parts.items():
        for _, leaf in leaves(tree):
            if not np.isfinite(leaf).all():
                raise SimulatorError(
                    f"the environment gave {name} that are not finite at environment step {step}; "
                    "mend it"
                )


class Rows(Protocol):
    """Environments in rows, as a rollout needs them."""

    observation_space: spaces.Space
    action_space: spaces.Space

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        """Start an episode in each of `rows` (n,), None for all, each from its own seed:
        observations (n, …)."""
        ...

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        """Step the given rows, (n,) int, with actions (n, …); the others stay as they are."""
        ...

    def close(self) -> None:
        """Free the environments."""
        ...


class LocalRows:
    """Rows stepped one after another in this process.

    Raises SimulatorError naming the environment and the row where one fails. `numbers` are the
    rows' names in such messages.
    """

    def __init__(self, make_env: MakeEnv, numbers: Iterable[int]) -> None:
        self.numbers = list(numbers)
        self.envs = [make_env() for _ in self.numbers]
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        for space in (self.observation_space, self.action_space):
            leaf_spaces(space)  # raises UserError for one that no array holds

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        places = range(len(self.envs)) if rows is None else rows
        each = zip(places, seeds, strict=True)
        resets = [self._call(row, "reset", seed=int(seed)) for row, seed in each]
        return self._batch([observation for observation, _ in resets])

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        each = zip(rows, self._each(action, len(rows)), strict=True)
        steps = [self._call(row, "step", one) for row, one in each]
        observation, reward, terminated, truncated, _ = zip(*steps, strict=True)
        return Outcome(
            self._batch(observation),
            np.asarray(reward, np.float64),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
        )

    def _each(self, action: Tree, count: int) -> Iterator[Any]:
        for i in range(count):
            yield space_value(self.action_space, map_tree(lambda leaf, i=i: leaf[i], action))

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _call(self, row: int, method: str, *args: Any, **kwargs: Any) -> Any:
        env = self.envs[row]
        try:
            return getattr(env, method)(*args, **kwargs)
        except Exception as error:
            name = env.spec.id if env.spec else type(env.unwrapped).__name__
            raise SimulatorError(
                f"environment '{name}' failed in {method} of row {self.numbers[row]}: {error}"
            ) from error

    def _batch(self, observations: Iterable[Any]) -> Tree:
        trees = [space_tree(self.observation_space, observation) for observation in observations]
        return map_tree(lambda *leaves: np.stack(leaves), *trees)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
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
