"""Decision S4: reinforcement-learning agents that remember.

    from decision_s4 import Player

What stands in `__all__` is for loops of one's own; the rest lies in its room: `agents`, `envs`,
`kernels`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decision_s4.agents.actor import Actor
    from decision_s4.agents.backbones import make_backbone
    from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
    from decision_s4.agents.player import Player
    from decision_s4.agents.policies import make_policy
    from decision_s4.agents.policy import PolicyOptions
    from decision_s4.envs.batches import PackedBatches
    from decision_s4.envs.datasets import load as load_dataset
    from decision_s4.envs.errors import UserError
    from decision_s4.envs.rollout import rollout

__version__ = "0.1.0"
__all__ = [
    "Actor",
    "DecisionLearner",
    "OptimiserOptions",
    "PackedBatches",
    "Player",
    "PolicyOptions",
    "UserError",
    "load_dataset",
    "make_backbone",
    "make_policy",
    "rollout",
]
_HOMES = {
    "Actor": "agents.actor:Actor",
    "DecisionLearner": "agents.decision:DecisionLearner",
    "OptimiserOptions": "agents.decision:OptimiserOptions",
    "PackedBatches": "envs.batches:PackedBatches",
    "Player": "agents.player:Player",
    "PolicyOptions": "agents.policy:PolicyOptions",
    "UserError": "envs.errors:UserError",
    "load_dataset": "envs.datasets:load",
    "make_backbone": "agents.backbones:make_backbone",
    "make_policy": "agents.policies:make_policy",
    "rollout": "envs.rollout:rollout",
}


def __getattr__(name: str) -> Any:
    """What is public, imported when first asked for: who enters one room need not load another."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), own)
