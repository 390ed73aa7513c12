"""Sequence layers behind one contract (base.py). Each file of this folder is imported, so that a
layer is known as soon as its file is here."""

from importlib import import_module
from pkgutil import iter_modules

from decision_s4.agents.backbones.base import BACKBONES, Mixer, State, register
from decision_s4.agents.backbones.make import make_backbone
from decision_s4.agents.backbones.stack import Backbone

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BACKBONES", "Backbone", "Mixer", "State", "make_backbone", "register"]
