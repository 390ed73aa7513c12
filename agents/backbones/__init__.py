"""Sequence layers behind one contract (base.py)."""

from decision_s4.agents.backbones import s4 as s4
from decision_s4.agents.backbones.base import BACKBONES, Mixer, State, register
from decision_s4.agents.backbones.stack import Backbone, make_backbone

__all__ = ["BACKBONES", "Backbone", "Mixer", "State", "make_backbone", "register"]
