"""A Stream of episodes as a VecEnv of stable-baselines3: our rows, workers and errors there."""

import time
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from decision_s4.envs.spaces import Tree, map_tree
from decision_s4.envs.stream import Stream


class StreamVecEnv(VecEnv):
    """`len(stream.all)` environments, the next episode of each begun as the one before ends."""

    def __init__(self, stream: Stream):
        self.stream = stream
        rows = stream.rows
        super().__init__(len(stream.all), rows.observation_space, rows.action_space)

    def reset(self) -> Tree:
        """What is seen now; the stream began its episodes itself."""
        return self._seen()

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[Tree, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step: what is seen next, rewards, endings, and what stable-baselines3 asks for
        of an ended episode."""
        outcome = self.stream.step(self.actions)
        done = outcome.terminated | outcome.truncated
        infos: list[dict[str, Any]] = [{} for _ in done]
        last, ended = self._seen(), np.flatnonzero(done)
        for row, (total, length) in zip(ended, self.stream.renew(), strict=True):
            infos[row] = {
                "terminal_observation": map_tree(lambda leaf, row=row: leaf[row], last),
                "TimeLimit.truncated": bool(outcome.truncated[row] & ~outcome.terminated[row]),
                "episode": {"r": total, "l": length, "t": time.time()},
            }
        return self._seen(), outcome.reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Free the environments."""
        self.stream.rows.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """None of any: what is asked for is how it renders, and here it does not."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: an environment's attributes are its own."""
        raise NotImplementedError(f"'{attr_name}' of a stream's environments cannot be set")

    def env_method(
        self, method_name: str, *arguments: Any, indices: Any = None, **keywords: Any
    ) -> list[Any]:
        """Refused: the environments may live in other processes."""
        raise NotImplementedError(f"'{method_name}' of a stream's environments cannot be called")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """False: returns and lengths are counted by the stream."""
        return [False for _ in self._get_indices(indices)]

    def _seen(self) -> Tree:
        return map_tree(lambda leaf: leaf.numpy(), self.stream.now().observation)
