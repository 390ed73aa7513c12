"""One environment from its registered id, with messages that say what to do."""

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from decision_s4.envs import memory
from decision_s4.envs.errors import UserError, nearest, told
from decision_s4.envs.minigrid import readable

LOG = logging.getLogger(__name__)

ROBOTICS = ("gymnasium_robotics", "pip install -e '.[robotics]'")
# Which package registers the ids that begin so, and how to get it.
PACKAGES = {
    "Adroit": ROBOTICS,
    "FrankaKitchen": ROBOTICS,
    "Fetch": ROBOTICS,
    "HandManipulate": ROBOTICS,
    "HandReach": ROBOTICS,
    "AntMaze": ROBOTICS,
    "PointMaze": ROBOTICS,
    "MiniGrid-": ("minigrid", "pip install -e '.[memory]'"),
    "BabyAI-": ("minigrid", "pip install -e '.[memory]'"),
    "popgym-": ("popgym", "pip install -e '.[memory]'"),
    "ALE/": ("ale_py", "pip install ale-py"),
}

REFUSALS = (
    *(TypeError, ValueError, ArithmeticError, AssertionError, LookupError, OSError),
    gym.error.Error,
)
"""What environments raise for arguments that they do not take."""

memory.register()


def make(env_id: str, **kwargs: Any) -> gym.Env:
    """The environment registered as `env_id`, made with `kwargs`.

    Raises UserError for an id that is not registered, a missing package, or refused arguments.
    """
    spec = registered_spec(env_id)
    try:
        with quiet_mujoco(spec):
            return readable(gym.make(env_id, disable_env_checker=True, **kwargs))
    except UserError:
        raise
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise UserError(f"environment '{env_id}' lacks a package: {_line(error)}") from error
    except REFUSALS as error:
        raise UserError(f"environment '{env_id}' refuses {kwargs}: {_line(error)}") from error
    except Exception as error:  # a simulator without its licence, a robot that is not there
        raise UserError(f"environment '{env_id}' cannot be made: {told(error)}") from error


def step_seconds(env_id: str | None, **kwargs: Any) -> float | None:
    """Simulated seconds of a step, where the environment knows them.

    MuJoCo's call them dt, as Pendulum's does; CartPole's calls them tau.
    """
    if env_id is None:
        return None
    env = make(env_id, **kwargs)
    try:
        found = getattr(env.unwrapped, "dt", None) or getattr(env.unwrapped, "tau", None)
    finally:
        env.close()
    return float(found) if isinstance(found, (int, float)) else None


def registered_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """Gymnasium's entry for `env_id`. Raises UserError where there is none."""
    # Gymnasium imports the module named before a colon: an id from a data file could run code.
    if not isinstance(env_id, str) or ":" in env_id:
        raise UserError(f"environment id {env_id!r} is no registered name like 'Hopper-v5'")
    _import_package(env_id)
    if env_id not in gym.registry:
        raise UserError(f"environment '{env_id}' is not registered{nearest(env_id, gym.registry)}")
    return gym.registry[env_id]


def _import_package(env_id: str) -> None:
    """Let the package that is known for ids like `env_id` register them."""
    if env_id in gym.registry:
        return
    for prefix, (module, install) in PACKAGES.items():
        if env_id.startswith(prefix):
            if importlib.util.find_spec(module) is None:
                raise UserError(f"environment '{env_id}' needs {module}: {install}")
            gym.register_envs(importlib.import_module(module))


def uses_mujoco(spec: gym.envs.registration.EnvSpec) -> bool:
    """Whether the environment is one of Gymnasium's or Gymnasium-Robotics' MuJoCo models."""
    return str(spec.entry_point).startswith(("gymnasium.envs.mujoco", "gymnasium_robotics"))


@contextmanager
def quiet_mujoco(spec: gym.envs.registration.EnvSpec) -> Iterator[None]:
    """Keep from screen and log file that a model uses what MuJoCo deprecates.

    Gymnasium's own models do, and each one made would say so; other warnings are logged.
    """
    if not uses_mujoco(spec) or importlib.util.find_spec("mujoco") is None:
        yield
        return
    try:
        import mujoco
    except (RuntimeError, AttributeError) as error:  # it looks for its renderer when imported
        raise UserError(f"MuJoCo cannot be loaded ({_line(error)}); unset MUJOCO_GL") from error
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_log_unless_deprecation)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def _log_unless_deprecation(message: str) -> None:
    if "deprecated" not in message:
        LOG.warning("MuJoCo: %s", message)


def check_compatible(
    env: gym.Env,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    owner: str = "the dataset",
) -> None:
    """Raise UserError where the spaces of `owner` (a dataset, a run) do not fit the environment."""
    pairs = {
        "observations": (env.observation_space, observation_space),
        "actions": (env.action_space, action_space),
    }
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    for what, (ours, theirs) in pairs.items():
        if describe(ours) != describe(theirs):
            raise UserError(
                f"environment '{name}' has {what} {describe(ours)}, {owner} {describe(theirs)}; "
                "choose the environment they were recorded in"
            )


def describe(space: spaces.Space) -> str:
    """Kind and shape of a space; two spaces whose values are interchangeable read the same."""
    match space:
        case spaces.Box():
            return f"Box{space.shape}"
        case spaces.Dict():
            return f"Dict({', '.join(f'{k}: {describe(s)}' for k, s in space.items())})"
        case spaces.Tuple():
            return f"Tuple({', '.join(describe(s) for s in space)})"
    return str(space)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
