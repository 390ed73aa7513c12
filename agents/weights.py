"""Saved weights into a module, or one line that says why they do not fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from decision_s4.envs.errors import UserError


def load_weights_into(
    module: nn.Module, weights: Mapping[str, torch.Tensor], where: str | Path
) -> None:
    """Copy `weights` into `module`: every name, shape and dtype must agree.

    Raises UserError that names the first tensor of each fault; the module is then untouched.
    """
    own = module.state_dict()
    both = [name for name in own if name in weights]
    faults = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [n for n in both if own[n].shape != weights[n].shape],
        "of another dtype": [n for n in both if own[n].dtype != weights[n].dtype],
    }
    named = [
        f"{len(names)} {fault} (first: {_describe(names[0], own, weights)})"
        for fault, names in faults.items()
        if names
    ]
    if named:
        raise UserError(f"{where}: weights of another model: {', '.join(named)}; check its config")
    module.load_state_dict(dict(weights))


def _describe(name: str, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    if name not in own or name not in found:
        return name
    here, there = own[name], found[name]
    shapes = f"{tuple(there.shape)} {there.dtype}, not {tuple(here.shape)} {here.dtype}"
    return f"{name} is {shapes}".replace("torch.", "")
