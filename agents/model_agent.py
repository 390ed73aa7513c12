"""A policy of stable-baselines3, or of sb3-contrib, as an Agent, and its training's state."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor, nn

from decision_s4.envs.spaces import map_tree
from decision_s4.envs.timestep import State, TimeStep

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class ModelAgent(nn.Module):
    """Acts as the policy predicts; an LSTM's state is (B, layers, width), twice.

    `options` tell how to rebuild it, where it is to be saved.
    """

    def __init__(self, policy: Any, options: Any = None):
        super().__init__()
        self.policy, self.options = policy, options
        self.observation_space, self.action_space = policy.observation_space, policy.action_space

    @property
    def recurrent(self) -> bool:
        """Whether it has a state."""
        return hasattr(self.policy, "lstm_hidden_state_shape")

    def initial_state(self, batch_size: int) -> State:
        """Zeros, or nothing."""
        if not self.recurrent:
            return ()
        layers, _, width = self.policy.lstm_hidden_state_shape
        return torch.zeros(batch_size, layers, width), torch.zeros(batch_size, layers, width)

    def act(self, step: TimeStep, state: State, deterministic: bool = False) -> tuple[Any, State]:
        """Actions (B, …) in the action space's units."""
        seen = map_tree(lambda leaf: leaf.numpy(), step.observation)
        if not self.recurrent:
            return self.policy.predict(seen, deterministic=deterministic)[0], state
        before = tuple(_layers_first(part) for part in state)
        start = step.start.numpy()
        action, after = self.policy.predict(seen, before, start, deterministic)
        return action, tuple(torch.from_numpy(part).transpose(0, 1) for part in after)


def _layers_first(part: Tensor) -> np.ndarray:
    return part.transpose(0, 1).contiguous().numpy()


def trainer_state(model: BaseAlgorithm) -> dict[str, Any]:
    """What a training goes on from: networks, optimisers, counters, and the replay buffer."""
    state = {"parameters": model.get_parameters(), "updates": model._n_updates}
    if isinstance(model, OffPolicyAlgorithm):
        state["buffer"] = _buffer_state(model.replay_buffer)
    temperature = getattr(model, "log_ent_coef", None)  # SAC's, which is no module's
    if temperature is not None:
        state["log_ent_coef"] = temperature.detach()
    return state


def restore_trainer(model: BaseAlgorithm, state: dict[str, Any], steps: int) -> None:
    """Go on where `trainer_state` was taken, at a number of environment steps.

    The episodes that were under way are cut there: simulators cannot be saved.
    """
    model.set_parameters(state["parameters"])
    model._n_updates, model.num_timesteps = state["updates"], steps
    if isinstance(model, OffPolicyAlgorithm):
        _refill_buffer(model.replay_buffer, state["buffer"])
    if "log_ent_coef" in state:
        vars(model)["log_ent_coef"].data.copy_(state["log_ent_coef"])


def _buffer_state(buffer: Any) -> dict[str, Any]:
    filled = buffer.size()
    arrays = {
        name: map_tree(lambda leaf: torch.from_numpy(leaf[:filled]), getattr(buffer, name))
        for name in ARRAYS
    }
    return {"arrays": arrays, "position": buffer.pos, "full": buffer.full}


def _refill_buffer(buffer: Any, state: dict[str, Any]) -> None:
    for name in ARRAYS:
        map_tree(_refill, getattr(buffer, name), state["arrays"][name])
    buffer.pos, buffer.full = state["position"], state["full"]
    if buffer.size():
        last = buffer.pos - 1
        cut = ~buffer.dones[last].astype(bool)
        buffer.dones[last, cut] = buffer.timeouts[last, cut] = 1


def _refill(array: np.ndarray, values: Tensor) -> None:
    array[: len(values)] = values.numpy()
