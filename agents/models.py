"""Agents of stable-baselines3 and sb3-contrib by name: what they need, and how they are made."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from decision_s4.agents.encoders import is_image
from decision_s4.agents.model_agent import ModelAgent
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.spaces import leaf_spaces, leaves

OURS = {"self", "policy", "env", "learning_rate", "seed", "device", "policy_kwargs", "verbose"}
OURS |= {"action_noise", "tensorboard_log"}  # what agent_options cannot set: it has other flags


@dataclass(frozen=True)
class ModelOptions:
    """What tells an agent's networks from those of its kind's defaults."""

    algo: str
    """sac, td3, sb3-ppo or recurrent-ppo."""
    networks: dict[str, Any] = field(default_factory=dict)
    """Arguments of the library's policy class, plain values."""


def model_kind(algo: str) -> type[BaseAlgorithm]:
    """The library's class. Raises UserError where its package is not installed."""
    kinds: dict[str, type[BaseAlgorithm]] = {"sac": SAC, "td3": TD3, "sb3-ppo": PPO}
    if algo in kinds:
        return kinds[algo]
    try:
        from sb3_contrib import RecurrentPPO
    except ImportError:
        raise UserError(
            "--algo recurrent-ppo needs sb3-contrib; pip install -e '.[contrib]'"
        ) from None
    return RecurrentPPO


def networks_name(owner: str, observed: spaces.Space, recurrent: bool = False) -> str:
    """The name of the library's networks for an observation space of `owner`.

    Raises UserError for one that has none here.
    """
    parts = [part for _, part in leaves(leaf_spaces(observed))]
    if isinstance(observed, spaces.Tuple) or any(map(is_image, parts)):
        raise UserError(
            f"{owner} observes {observed}; a training by stable-baselines3 takes no Tuple and no "
            "images here; record a run of yours with --run, or take --algo ppo"
        )
    kind = "MultiInput" if isinstance(observed, spaces.Dict) else "Mlp"
    return f"{kind}LstmPolicy" if recurrent else f"{kind}Policy"


def make_model(
    options: ModelOptions,
    env: VecEnv,
    owner: str,
    arguments: dict[str, Any],
    noise: float = 0.0,
) -> BaseAlgorithm:
    """An untrained agent for `env`, which errors call `owner`.

    `arguments` are the class's own; `noise` is that on the actions of TD3, in units of half the
    action range. Raises UserError for spaces or arguments that do not fit.
    """
    kind = model_kind(options.algo)
    name = networks_name(owner, env.observation_space, options.algo == "recurrent-ppo")
    if noise:
        count = int(np.prod(env.action_space.shape or (1,)))
        arguments = arguments | {
            "action_noise": NormalActionNoise(np.zeros(count), np.full(count, noise))
        }
    try:
        return kind(name, env, policy_kwargs=dict(options.networks), **arguments)
    except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--algo {options.algo} on {owner}: {reason}") from error


def check_arguments(algo: str, arguments: Iterable[str]) -> None:
    """Raise UserError for a name that the library's class does not take, or that has a flag."""
    taken = set(inspect.signature(model_kind(algo).__init__).parameters) - OURS
    for name in arguments:
        if name not in taken:
            raise UserError(f"--agent-options: unknown '{name}' of {algo}{nearest(name, taken)}")


def make_agent(
    observation_space: spaces.Space, action_space: spaces.Space, options: ModelOptions
) -> ModelAgent:
    """The untrained networks of an agent, without what trains them."""
    kind = model_kind(options.algo)
    name = networks_name("it", observation_space, options.algo == "recurrent-ppo")
    networks = kind.policy_aliases[name]
    return ModelAgent(
        networks(observation_space, action_space, lambda _: 0.0, **options.networks), options
    )
