"""The stack around any mixer: x + mixer(norm(x)), if asked x + mlp(norm(x)), a norm at the end."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.base import (
    Mixer,
    State,
    reset,
)
from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.agents.backbones.operator import MixerOp, operator_of
from decision_s4.kernels.packing import Packing


class Block(nn.Module):
    """One layer: pre-norm, mixer, residual, and optionally the same around an MLP."""

    mixer: Mixer
    mlp: nn.Sequential | None

    def __init__(self, mixer: Mixer, d_model: int, mlp: nn.Sequential | None, dropout: float):
        super().__init__()
        self.norm = ops.LayerNorm(d_model)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.mlp = mlp

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        x = ops.tap("input", x)
        y, state = self.mixer(self.norm(x), state, packing)
        return self.add(x, y), state

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        x = ops.tap("input", x)
        y, state = self.mixer.step(self.norm(x), state, constants)
        return self.add(x, y), state

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """What the block makes of its input and of its mixer's output: residual, then MLP."""
        x = x + ops.tap("output", self.dropout(y))
        return x if self.mlp is None else x + self.mlp(x)


def _mlp(d_model: int, ratio: float, dropout: float, activation: str) -> nn.Sequential | None:
    if not ratio:
        return None
    hidden = max(1, round(d_model * ratio))
    return nn.Sequential(
        ops.LayerNorm(d_model),
        nn.Linear(d_model, hidden),
        ops.Activation(activation),
        nn.Linear(hidden, d_model),
        nn.Dropout(dropout),
    )


class Backbone(nn.Module):
    """A stack of mixers: x (B, T, D) -> y (B, T, D), in parallel or step by step, one function.

    `start[b, t]` marks the first step of an episode: there the state is as new before x_t is
    consumed, so that whole episodes pack into one row. Steps with `valid` False leave it untouched.
    """

    def __init__(
        self,
        mixers: list[Mixer],
        d_model: int,
        mlp_ratio: float,
        dropout: float,
        mlp_activation: str = "gelu",
    ):
        super().__init__()
        self.d_model = d_model
        self.blocks = ModuleList(
            Block(mixer, d_model, _mlp(d_model, mlp_ratio, dropout, mlp_activation), dropout)
            for mixer in mixers
        )
        self.norm = ops.LayerNorm(d_model)
        self._state_shapes = _shapes(self.initial_state(1, torch.device("meta")))

    @property
    def context(self) -> int | None:
        """None where the state is recurrent; otherwise the largest window of a layer."""
        windows = [block.mixer.context for block in self.blocks]
        known = [window for window in windows if window is not None]
        return max(known) if len(known) == len(windows) else None

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        """One state a layer, for `batch_size` rows."""
        device = device or self.norm.weight.device
        return tuple(block.mixer.initial_state(batch_size, device) for block in self.blocks)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        start: Tensor | None = None,
        valid: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, State]:
        """x (B, T, D), start and valid (B, T) bool -> (y (B, T, D), state after the last step).

        `packing` is that of start and valid, if known.

        Raises:
            ValueError: for shapes or types that do not fit.
        """
        state, packing = self._begin(x, state, start, valid, packing)
        after = []
        for i, (block, before) in enumerate(zip(self.blocks, state, strict=True)):
            with ops.scope("blocks", i):
                x, new = block(x, before, packing)
            after.append(new)
        return ops.tap("features", self.norm(x)), tuple(after)

    def operator(
        self,
        x: Tensor,
        state: State | None = None,
        start: Tensor | None = None,
        valid: Tensor | None = None,
        part: str = "layer",
    ) -> list[MixerOp]:
        """Each layer at the input that it has when the stack reads x: see operator.py.

        Args:
            x: (B, T, D), state, start and valid as in `forward`; dropout is off.
            part: "layer", or "scan" for the recurrence alone of layers that tell it apart.

        Raises:
            ValueError: for shapes or types that do not fit.
        """
        state, packing = self._begin(x, state, start, valid)
        operators = []
        for block, before in zip(self.blocks, state, strict=True):
            op, y, _ = operator_of(block.mixer, block.norm(x), before, packing, part)
            operators.append(op)
            x = block.add(x, y)
        return operators

    def constants(self) -> Any:
        """What `step` needs of the parameters alone, by layer; compute once, step many times."""
        return tuple(block.mixer.constants() for block in self.blocks)

    def step(
        self, x: Tensor, state: State, start: Tensor | None = None, constants: Any = None
    ) -> tuple[Tensor, State]:
        """One step: x (B, D), start (B,) bool -> (y (B, D), new state). Differentiable.

        Raises:
            ValueError: for shapes or types that do not fit.
        """
        self._check(x, 2, start=start)
        self._check_state(state, len(x))  # another's may fit, or broadcast, silently
        if start is not None:
            state = reset(state, start, self.initial_state(len(x), x.device))
        constants = self.constants() if constants is None else constants
        after = []
        parts = zip(self.blocks, state, constants, strict=True)
        for i, (block, before, values) in enumerate(parts):
            with ops.scope("blocks", i):
                x, new = block.step(x, before, values)
            after.append(new)
        return ops.tap("features", self.norm(x)), tuple(after)

    def recurrence_parameters(self) -> list[nn.Parameter]:
        """Poles, time steps and their like, which want a smaller rate and no weight decay."""
        return [
            mixer.get_parameter(name)
            for mixer in self.modules()
            if isinstance(mixer, Mixer)
            for name in mixer.recurrence_parameters
        ]

    def _begin(
        self,
        x: Tensor,
        state: State | None,
        start: Tensor | None,
        valid: Tensor | None,
        packing: Packing | None = None,
    ) -> tuple[State, Packing]:
        batch, steps = self._check(x, 3, start=start, valid=valid)
        state = self.initial_state(batch, x.device) if state is None else state
        self._check_state(state, batch)
        if start is None:
            start = torch.zeros(batch, steps, dtype=torch.bool, device=x.device)
        return state, packing or Packing(start, valid)

    def _check(self, x: Tensor, ndim: int, **masks: Tensor | None) -> tuple[int, int]:
        if x.ndim != ndim or x.shape[-1] != self.d_model or 0 in x.shape:
            wanted = "(B, T, D)" if ndim == 3 else "(B, D)"
            raise ValueError(
                f"backbone input has shape {tuple(x.shape)}; it needs {wanted} with "
                f"D = {self.d_model} and no empty dimension"
            )
        if not x.is_floating_point():
            raise ValueError(f"backbone input has type {x.dtype}; it needs a floating-point type")
        own = self.norm.weight.dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"backbone input has type {x.dtype}; it needs {own}, as the weights")
        for name, mask in masks.items():
            if mask is not None and (mask.shape != x.shape[:-1] or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)} and type {mask.dtype}; "
                    f"it needs {tuple(x.shape[:-1])} and torch.bool"
                )
        return x.shape[0], x.shape[1]

    def _check_state(self, state: State, batch: int) -> None:
        wanted = [shape and (batch, *shape[1:]) for shape in self._state_shapes]
        given = _shapes(state)
        if given != wanted:
            raise ValueError(
                f"state has shapes {given}; this backbone needs {wanted}: "
                "was it made by another backbone or for another batch size?"
            )


def _shapes(state: State) -> list[tuple[int, ...] | None]:
    """Of each leaf in turn; None for one that is no tensor."""
    return [tuple(leaf.shape) if torch.is_tensor(leaf) else None for leaf in tree_leaves(state)]
