"""A layer at one input as a linear map: y = M v + what the carried state adds + what biases add.

Everything that weighs values (see ops.py) is held at this input. Run again with other values the
layer is then the very map M, in O(T); a row of M is one backward pass through it.
Shapes: B rows, T steps, I steps asked for, H heads: channels, heads that share weights, or pairs
of an output and an input channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.rows import has_holes
from decision_s4.envs.errors import UserError
from decision_s4.kernels.packing import Packing

if TYPE_CHECKING:
    from decision_s4.agents.backbones.base import Mixer

MAX_ELEMENTS = 1 << 26
"""Of a dense map: 512 MiB in float64."""


@dataclass(frozen=True)
class MixerOp:
    """One layer, its coefficients held; made by `operator_of`."""

    mixer: "Mixer"
    x: Tensor
    """(B, T, D) the layer's input."""
    state: Any
    packing: Packing
    coefficients: ops.Coefficients
    part: str
    """Which of the layer's `mixing` parts: the "layer" from its values on, or its "scan" alone."""
    values: Tensor
    """(B, T, …) v at this input."""

    @property
    def layout(self) -> str:
        """What one head is: see `Mixer.mixing`."""
        return self.mixer.mixing.get(self.part, "dense")

    @property
    def output_tap(self) -> str:
        """Where `forward` lets probes read what M v, state_read and bias add up to."""
        return f"{self.part}.mixed" if self.part in self.mixer.mixing else "output"

    @property
    def step(self) -> Tensor | None:
        """Δ (B, T, heads) of a layer that selects its time steps, else None."""
        return self.coefficients.get("step")

    def apply(self, v: Tensor) -> Tensor:
        """M v, v and the result shaped as `values` (dense: as the layer's values and outputs)."""
        return self._mixed(v, self._no_state) - self.bias

    @cached_property
    def bias(self) -> Tensor:
        """(B, T, …) what biases inside M contribute."""
        return self._mixed(torch.zeros_like(self.values), self._no_state)

    @cached_property
    def state_read(self) -> Tensor:
        """(B, T, …) what the carried-in state contributes."""
        return self._mixed(torch.zeros_like(self.values), self.state) - self.bias

    def finish(self, mixed: Tensor) -> Tensor:
        """The layer's output (B, T, D) from M v + state_read + bias: its skip and what follows."""
        if self.part not in self.mixer.mixing:
            return mixed
        return self._run(self.x, self.state, {f"{self.part}.mixed": lambda _: mixed})

    def rows(self, steps: Sequence[int] | Tensor) -> Tensor:
        """(B, H, I, T) rows of M; those of later steps than the row's own are exactly 0.

        Raises:
            UserError: for a step that is not there.
        """
        steps = self._check(steps)
        closed = None
        if not has_holes(self.packing):
            closed = self.mixer.closed_rows(self.part, self.coefficients, self.packing, steps)
        return self._rows_by_gradient(steps) if closed is None else closed

    def dense(self, max_elements: int = MAX_ELEMENTS) -> Tensor:
        """(B, H, T, T): all rows.

        Raises:
            UserError: if it has more than `max_elements`, with its size.
        """
        rows, steps = self.values.shape[:2]
        shape = (rows, self.heads, steps, steps)
        size = rows * self.heads * steps * steps
        if size > max_elements:
            raise UserError(
                f"a dense map {shape} has {size:,} elements, more than {max_elements:,}; "
                "ask for rows(steps) of the steps of interest, or for a shorter stretch"
            )
        return self.rows(range(steps))

    @cached_property
    def heads(self) -> int:
        """H."""
        width = self.values[0, 0].numel()
        if self.layout == "heads":
            return self.values.shape[2]
        return width if self.layout == "channels" else width * self.bias[0, 0].numel()

    def combine(self, rows: Tensor, v: Tensor) -> Tensor:
        """M v at the steps of `rows` (B, H, I, T): v (B, T, …) -> (B, I, …)."""
        if self.layout == "heads":
            return torch.einsum("bhit,bthv->bihv", rows, v)
        if self.layout == "channels":
            y = torch.einsum("bhit,bth->bih", rows, v.flatten(2))
        else:
            pairs = rows.unflatten(1, (-1, v[0, 0].numel()))
            y = torch.einsum("bojit,btj->bio", pairs, v.flatten(2))
        return y.unflatten(2, self.bias.shape[2:])

    def _check(self, steps: Sequence[int] | Tensor) -> Tensor:
        steps = torch.as_tensor(steps, device=self.x.device).long().flatten()
        last = self.values.shape[1] - 1
        for step in steps.tolist():
            if not 0 <= step <= last:
                raise UserError(f"step {step} is not there; steps are 0 to {last}")
        return steps

    def _rows_by_gradient(self, steps: Tensor) -> Tensor:
        with torch.enable_grad():
            v = self.values.detach().requires_grad_()
            y = self._mixed(v, self._no_state)
        found = [self._row(y, v, step) for step in steps.tolist()]
        return torch.stack(found, 2)

    def _row(self, y: Tensor, v: Tensor, step: int) -> Tensor:
        """(B, H, T): a head's row is the gradient of one of its outputs."""
        if self.layout == "dense":
            return self._pairs(y, v, step)
        seed = torch.zeros_like(y)
        if self.layout == "channels":
            seed[:, step] = 1
        else:
            seed[:, step, :, 0] = 1
        (gradient,) = torch.autograd.grad(y, v, seed, retain_graph=True)
        if self.layout == "channels":
            return gradient.flatten(2).transpose(1, 2)
        return gradient[..., 0].transpose(1, 2)

    def _pairs(self, y: Tensor, v: Tensor, step: int) -> Tensor:
        """(B, H, T), all outputs' gradients in one pass: a layer that loops over T loops once."""
        outputs = y[0, 0].numel()
        seeds = y.new_zeros(outputs, *y.shape)
        seeds[:, :, step] = torch.eye(outputs).to(y).view(outputs, 1, *y.shape[2:])
        try:
            (found,) = torch.autograd.grad(y, v, seeds, retain_graph=True, is_grads_batched=True)
        except RuntimeError:  # a kernel of our own, whose backward takes no batch of gradients
            each = [torch.autograd.grad(y, v, seed, retain_graph=True)[0] for seed in seeds]
            found = torch.stack(each)
        return found.flatten(3).movedim((1, 3), (0, 2)).flatten(1, 2)

    @cached_property
    def _no_state(self) -> Any:
        return tree_map(torch.zeros_like, self.state)

    def _mixed(self, v: Tensor, state: Any) -> Tensor:
        if self.part not in self.mixer.mixing:
            return self._run(v, state, {})
        found: list[Tensor] = []
        handlers: dict[str, ops.Handler] = {
            f"{self.part}.values": lambda _: v,
            f"{self.part}.mixed": found.append,
        }
        self._run(self.x, state, handlers)
        return found[0]

    def _run(self, x: Tensor, state: Any, handlers: dict[str, ops.Handler]) -> Tensor:
        with ops.held(self.coefficients), ops.taps(handlers):
            return self.mixer(x, state, self.packing)[0]


@torch.no_grad()
def operator_of(
    mixer: "Mixer", x: Tensor, state: Any, packing: Packing, part: str = "layer"
) -> tuple[MixerOp, Tensor, Any]:
    """A layer at x (B, T, D) as its operator, its output (B, T, D) and the state after it.

    A `part` that the layer does not tell apart is the whole layer.
    """
    part = part if part in mixer.mixing else "layer"
    found = [x]
    with ops.holding() as record, ops.taps({f"{part}.values": found.append}):
        y, after = mixer(x, state, packing)
    return MixerOp(mixer, x, state, packing, record, part, found[-1]), y, after
