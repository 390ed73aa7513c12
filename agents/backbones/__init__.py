"""Sequence layers behind one contract (base.py)."""

from decision_s4.agents.backbones import gated as gated
from decision_s4.agents.backbones import gated_linear as gated_linear
from decision_s4.agents.backbones import hybrid as hybrid
from decision_s4.agents.backbones import lru as lru
from decision_s4.agents.backbones import mamba as mamba
from decision_s4.agents.backbones import mamba2 as mamba2
from decision_s4.agents.backbones import mlp as mlp
from decision_s4.agents.backbones import retnet as retnet
from decision_s4.agents.backbones import s4 as s4
from decision_s4.agents.backbones import s5 as s5
from decision_s4.agents.backbones import transformer as transformer
from decision_s4.agents.backbones.base import BACKBONES, Mixer, State, register
from decision_s4.agents.backbones.stack import Backbone, make_backbone

__all__ = ["BACKBONES", "Backbone", "Mixer", "State", "make_backbone", "register"]
