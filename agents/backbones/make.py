"""A backbone by its name, sizes and options."""

import math
from typing import Any

from decision_s4.agents.backbones.base import LARGEST, check_memory, family_of, make_options
from decision_s4.agents.backbones.stack import Backbone
from decision_s4.envs.errors import UserError, nearest

ACTIVATIONS = ("gelu", "relu")


def make_backbone(
    name: str,
    d_model: int = 64,
    n_layers: int = 3,
    mlp_ratio: float = 0.0,
    dropout: float = 0.0,
    mlp_activation: str = "gelu",
    **options: Any,
) -> Backbone:
    """The backbone called `name`.

    Args:
        name: a key of BACKBONES or MEMORYLESS.
        d_model: width D.
        n_layers: number of blocks.
        mlp_ratio: hidden width of each block's MLP over D; 0 for none.
        dropout: probability, on each residual branch.
        mlp_activation: of each block's MLP, "gelu" or "relu".
        options: fields of the mixer's Options.

    Raises:
        ValueError: for an unknown name or option, or sizes that do not fit.
    """
    _check_sizes(d_model, n_layers)
    if not (0 <= mlp_ratio < math.inf and 0 <= dropout < 1):
        raise UserError(f"mlp_ratio {mlp_ratio} must be at least 0, dropout {dropout} in [0, 1)")
    if mlp_activation not in ACTIVATIONS:
        near = nearest(mlp_activation, ACTIVATIONS)
        raise UserError(f"mlp_activation '{mlp_activation}' is unknown{near}")
    try:
        mixers = family_of(name).layers(d_model, make_options(name, options), n_layers)
        return Backbone(mixers, d_model, mlp_ratio, dropout, mlp_activation)
    except (RuntimeError, MemoryError) as error:  # torch has no type of its own for it on the CPU
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        sizes = {"d_model": d_model, "n_layers": n_layers, "mlp_ratio": mlp_ratio} | options
        raise UserError(
            f"backbone '{name}' does not fit in memory with "
            f"{', '.join(f'{key} {value}' for key, value in sizes.items())}; choose smaller sizes"
        ) from None


def _check_sizes(d_model: int, n_layers: int) -> None:
    """Raise UserError for those that no machine has room for, or that are none."""
    if d_model < 1 or n_layers < 1:
        raise UserError(f"d_model {d_model} and n_layers {n_layers} must be at least 1")
    if d_model > LARGEST or n_layers > 1000:
        raise UserError(f"d_model {d_model} and n_layers {n_layers} go to {LARGEST:g} and 1000")
    check_memory(d_model, n_layers)
