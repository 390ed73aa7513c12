"""Rows of environments stepped in this process."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from decision_s4.envs.actions import space_value
from decision_s4.envs.errors import SimulatorError, told
from decision_s4.envs.rows import MakeEnv, Outcome, check_finite
from decision_s4.envs.spaces import Tree, as_space, leaf_spaces, map_tree, space_tree

RESULTS = {
    "reset": "observation, info",
    "step": "observation, reward, terminated, truncated, info",
}
"""What Gymnasium's methods give."""


class LocalRows:
    """Rows stepped one after another in this process.

    Raises SimulatorError naming the environment and the row where one fails, or gives what is not
    of its own spaces. `numbers` are the rows' names in such messages.
    """

    def __init__(self, make_env: MakeEnv, numbers: Iterable[int]) -> None:
        self.numbers = list(numbers)
        self.envs = [make_env() for _ in self.numbers]
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self._observed = leaf_spaces(self.observation_space)  # UserError for what no array holds
        leaf_spaces(self.action_space)

    def reset(self, seeds: Sequence[int], rows: np.ndarray | None = None) -> Tree:
        places = range(len(self.envs)) if rows is None else rows
        each = zip(places, seeds, strict=True)
        resets = [self._call(row, "reset", seed=int(seed)) for row, seed in each]
        observation = self._batch([observation for observation, _ in resets])
        check_finite("observations", observation, "as an episode began")
        return observation

    def step(self, rows: np.ndarray, action: Tree) -> Outcome:
        each = zip(rows, self._each(action, len(rows)), strict=True)
        steps = [self._call(row, "step", one) for row, one in each]
        observation, reward, terminated, truncated, _ = zip(*steps, strict=True)
        return Outcome(
            self._batch(observation),
            self._column("rewards", reward, np.float64),
            self._column("terminated", terminated, bool),
            self._column("truncated", truncated, bool),
        )

    def _each(self, action: Tree, count: int) -> Iterator[Any]:
        for i in range(count):
            yield space_value(self.action_space, map_tree(lambda leaf, i=i: leaf[i], action))

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _call(self, row: int, method: str, *args: Any, **kwargs: Any) -> tuple:
        """What a method of a row's environment gives: as many values as Gymnasium's."""
        try:
            given = getattr(self.envs[row], method)(*args, **kwargs)
        except Exception as error:
            number = self.numbers[row]
            raise SimulatorError(
                f"environment '{self._name}' failed in {method} of row {number}: {told(error)}"
            ) from error
        if not isinstance(given, tuple) or len(given) != RESULTS[method].count(",") + 1:
            count = f"{len(given)} values" if isinstance(given, tuple) else type(given).__name__
            self._refuse(f"{method} gives {count}; Gymnasium's gives {RESULTS[method]}")
        return given

    def _batch(self, observations: Iterable[Any]) -> Tree:
        space = self.observation_space
        try:
            trees = [space_tree(space, observation) for observation in observations]
            stacked = map_tree(lambda _, *leaves: np.stack(leaves), self._observed, *trees)
            return map_tree(as_space, self._observed, stacked)
        except (LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            self._refuse(f"it observes what is not of its observation_space {space} ({reason})")

    def _column(self, name: str, values: Sequence[Any], dtype: type) -> np.ndarray:
        """One number a row, (n,); an array of one counts as a number."""
        try:
            return np.asarray(values, dtype).reshape(len(values))
        except (TypeError, ValueError):
            self._refuse(f"its {name} are no single numbers, such as {values[0]!r:.40}")

    def _refuse(self, reason: str) -> NoReturn:
        raise SimulatorError(f"environment '{self._name}': {reason}; mend it")

    @property
    def _name(self) -> str:
        env = self.envs[0]
        return env.spec.id if env.spec else type(env.unwrapped).__name__
