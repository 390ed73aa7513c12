"""Rows of environments stepped in this process."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from decision_s4.envs.actions import space_value
from decision_s4.envs.errors import SimulatorError
from decision_s4.envs.rows import MakeEnv, Outcome
from decision_s4.envs.spaces import Tree, leaf_spaces, map_tree, space_tree


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
