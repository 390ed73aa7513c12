"""Algorithms by name: the settings that each has, and what runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from decision_s4.agents.options import RunOptions
from decision_s4.agents.run import Run
from decision_s4.envs.errors import UserError, nearest


class Algorithm(NamedTuple):
    """One algorithm."""

    config: type[RunOptions]
    """The dataclass of its settings."""
    begin: Callable[..., Run]
    """Makes a run of (settings, device)."""


def _sequences() -> Algorithm:
    from decision_s4.agents.training import TrainConfig, Training

    return Algorithm(TrainConfig, Training.begin)


def _td3_bc() -> Algorithm:
    from decision_s4.agents.value_training import TD3BCConfig, TD3BCTraining

    return Algorithm(TD3BCConfig, TD3BCTraining.begin)


def _iql() -> Algorithm:
    from decision_s4.agents.value_training import IQLConfig, IQLTraining

    return Algorithm(IQLConfig, IQLTraining.begin)


def _ppo() -> Algorithm:
    from decision_s4.agents.ppo_training import PPOConfig, PPOTraining

    return Algorithm(PPOConfig, PPOTraining.begin)


def _ds4_online() -> Algorithm:
    from decision_s4.agents.online_beginning import DS4OnlineConfig
    from decision_s4.agents.online_training import OnlineTraining

    return Algorithm(DS4OnlineConfig, OnlineTraining.begin)


def _baseline() -> Algorithm:
    from decision_s4.agents.baselines import BaselineConfig, BaselineTraining

    return Algorithm(BaselineConfig, BaselineTraining.begin)


def _td3() -> Algorithm:
    from decision_s4.agents.baselines import BaselineTraining, TD3Config

    return Algorithm(TD3Config, BaselineTraining.begin)


def _recurrent_ppo() -> Algorithm:
    from decision_s4.agents.baselines import BaselineTraining, RecurrentPPOConfig

    return Algorithm(RecurrentPPOConfig, BaselineTraining.begin)


ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "decision-s4": _sequences,
    "decision-transformer": _sequences,
    "decision-mamba": _sequences,
    "bc": _sequences,
    "10%-bc": _sequences,
    "td3-bc": _td3_bc,
    "iql": _iql,
    "ppo": _ppo,
    "ds4-online": _ds4_online,
    "sac": _baseline,
    "td3": _td3,
    "sb3-ppo": _baseline,
    "recurrent-ppo": _recurrent_ppo,
}
"""By the name that --algo takes, imported when asked for; configs/<name>.yaml holds what each
changes of the defaults."""


def algorithm_of(name: Any) -> Algorithm:
    """The algorithm of a name. Raises UserError, naming the nearest, for an unknown one."""
    if name not in ALGORITHMS:
        raise UserError(f"--algo: unknown algorithm '{name}'{nearest(str(name), ALGORITHMS)}")
    return ALGORITHMS[name]()
