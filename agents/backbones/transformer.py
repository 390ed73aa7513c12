"""The attention of a GPT block, over exactly the last W steps of an episode in each layer.

Multi-head causal attention (arXiv 1706.03762; GPT-2's initialisation) with rotary positions
(arXiv 2104.09864). The window is a layer's: a stack of n layers reaches n · (W − 1) steps back, in
parallel and step by step alike. The norm, the residual and the MLP are the stack's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.attention import (
    Ring,
    Weigh,
    after_chunks,
    attend,
    band,
    empty_ring,
    has_past,
    past_of_chunks,
    rotate,
    sinusoids,
)
from decision_s4.agents.backbones.base import Mixer, register
from decision_s4.envs.errors import UserError, nearest
from decision_s4.kernels.chunks import from_chunks, to_chunks
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class TransformerOptions:
    """Options of `transformer`."""

    n_heads: int = 4
    """Attention heads; each takes d_model / n_heads of the width."""
    window: int = 20
    """Steps that a layer sees, the current one included."""
    positions: Literal["rotary", "none"] = "rotary"
    """How steps are told apart by age; none leaves it to embeddings in the input."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights, in training."""


@register("transformer")
class Transformer(Mixer):
    """Sliding-window attention; its state is the ring of the last W − 1 keys and values."""

    Options = TransformerOptions
    recordable = True
    mixing: ClassVar = {"layer": "heads"}
    context: int
    weigh: Weigh | None = None
    """How queries and keys make weights, for `attend`; None is softmax."""

    def __init__(self, d_model: int, options: TransformerOptions):
        super().__init__()
        _check(d_model, options)
        self.options, self.context = options, options.window
        self.heads, self.width = options.n_heads, d_model // options.n_heads
        self.queries_keys_values = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        for layer in (self.queries_keys_values, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Ring:
        like = torch.empty(0, dtype=self.out.weight.dtype, device=device)
        return empty_ring(batch_size, self.context - 1, self.heads, self.width, like)

    def forward(self, x: Tensor, state: Ring, packing: Packing) -> tuple[Tensor, Ring]:
        q, k, v = self._project(x)
        y, after = self._over_window(q, k, ops.tap("layer.values", v), state, packing)
        return self.out(ops.tap("layer.mixed", y).flatten(2)), after

    def _over_window(
        self, q: Tensor, k: Tensor, v: Tensor, state: Ring, packing: Packing
    ) -> tuple[Tensor, Ring]:
        """Each (B, T, H, d) -> (y (B, T, H, d), ring after the last step)."""
        layout = packing.chunks(min(self.context, packing.steps))
        q, k, v = (to_chunks(part, layout) for part in (q, k, v))
        past = past_of_chunks(k, v, state, layout)
        seen = past.then(k, v)
        after = after_chunks(seen, state, layout)
        if not has_past(layout):  # as in a batch of windows: do not look for keys in vain
            seen = Ring(*(part[:, self.context - 1 :] for part in seen))
        y = self._attend(q, seen, self._turns(seen.keys.shape[1], q))
        return from_chunks(y, layout, packing.rows).unflatten(-1, v.shape[-2:]), after

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """The attention weights themselves."""
        weights, length = coefficients["attention"], min(self.context, packing.steps)
        return rows.each(steps, lambda t: rows.windowed(weights, packing, length, t))

    def constants(self) -> tuple[Tensor, Tensor] | None:
        return self._turns(self.context, self.out.weight)

    def step(self, x: Tensor, state: Ring, constants: Any) -> tuple[Tensor, Ring]:
        q, k, v = self._project(x[:, None])
        y, state = self._over_ring(q, k, v, state, constants)
        return self.out(y[:, 0]), state

    def _over_ring(
        self, q: Tensor, k: Tensor, v: Tensor, state: Ring, constants: Any
    ) -> tuple[Tensor, Ring]:
        """One step, each (B, 1, H, d) -> (y (B, 1, H · d), ring after it)."""
        seen = state.then(k, v)
        return self._attend(q, seen, constants), Ring(*(part[:, 1:] for part in seen))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys, values of x (…, D): (3, …, H, d)."""
        split = self.queries_keys_values(x).unflatten(-1, (3, self.heads, self.width))
        return split.movedim(-3, 0)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x (…, D), not turned: (…, H, d) each."""
        q, k, _ = self._project(x)
        return q, k

    def _turns(self, steps: int, like: Tensor) -> tuple[Tensor, Tensor] | None:
        return sinusoids(steps, self.width, like) if self.options.positions == "rotary" else None

    def _attend(self, q: Tensor, seen: Ring, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        mask = band(q.shape[1], seen, self.context)
        if turns is not None:
            q = rotate(q, *(part[-q.shape[1] :] for part in turns)).to(q.dtype)
            seen = seen._replace(keys=rotate(seen.keys, *turns))
        dropout = self.options.attention_dropout if self.training else 0.0
        return attend(q, seen, mask, dropout, self.weigh)


def _check(d_model: int, options: TransformerOptions) -> None:
    heads, window = options.n_heads, options.window
    if heads < 1 or d_model % heads:
        raise UserError(f"n_heads {heads} does not divide d_model {d_model}; use one that does")
    if options.positions not in ("rotary", "none"):
        near = nearest(options.positions, ("rotary", "none"))
        raise UserError(f"positions '{options.positions}' is unknown{near}")
    if options.positions == "rotary" and d_model // heads % 2:
        raise UserError(
            f"d_model {d_model} over n_heads {heads} is odd, but rotary positions turn pairs; "
            "use other sizes or positions=none"
        )
    if window < 1:
        raise UserError(f"window {window} must be at least 1, as it includes the current step")
    if not 0 <= options.attention_dropout < 1:
        raise UserError(f"attention_dropout {options.attention_dropout} must be in [0, 1)")
