"""Focus: attention inside a chunk, over inputs filtered by a recurrence that each chunk sets anew.

    z_t = λ_j z_{t−1} + √(1 − |λ_j|²) x_t,   y_t = Re z_t + d ⊙ x_t,   out_t = attention(y)_t
    λ_j = exp(−e^(a + A m_{j−1}) + iπ σ(b + B m_{j−1})),   m_j the mean of x over chunk j, m_0 = 0

in chunk j = 1, 2, … of C steps of an episode; attention sees the current chunk alone, and z carries
what came before. Lutati, Zimerman, Wolf, "Focus Your Attention (with Adaptive IIR Filters)", arXiv
2305.14952. Re z is a filter of order two in coupled form, which stays bounded while its poles
change. As published, filters work on whole chunks in the frequency domain and let a step see later
ones of its chunk; here they do not. One pole a channel. Shapes: N segments, of up to C steps.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from decision_s4.agents.backbones import ops
from decision_s4.agents.backbones.attention import Ring
from decision_s4.agents.backbones.base import Mixer, register
from decision_s4.agents.backbones.modal import log_rates
from decision_s4.agents.backbones.transformer import Transformer, TransformerOptions
from decision_s4.kernels.chunks import from_chunks, to_chunks
from decision_s4.kernels.gated_scan.order import pack, shrink, unpack
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class FocusOptions(TransformerOptions):
    """Options of `focus`; `window` is the length C of a chunk."""

    horizon_min: float = 2.0
    horizon_max: float = 100.0
    """Filters begin with horizons log-uniform between these, in steps."""


class FocusState(NamedTuple):
    """Between two steps; a chunk that is full gives way when the next step comes."""

    z: Tensor
    """(B, D, 2) real and imaginary parts."""
    before: Tensor
    """(B, D) sum of the inputs of the chunk before the current one."""
    total: Tensor
    """(B, D) sum of the inputs of the current chunk."""
    steps: Tensor
    """(B, 1) how many the current chunk has."""
    ring: Ring
    """The current chunk's last C − 1 keys and values."""


class Segments(NamedTuple):
    """Where the chunks of a packed batch lie: N of them, in order of rows and time."""

    packing: Packing
    """Each as an episode of its own."""
    rows: Tensor
    """(N,) the row of each."""
    opens_row: Tensor
    """(N, 1) the first of its row."""
    opens_episode: Tensor
    """(N, 1) the first of its episode."""
    continues: Tensor
    """(N, 1) goes on with the chunk carried in."""


def segments(packing: Packing, count: Tensor, length: int) -> Segments:
    """Episodes cut every `length` steps, a row's first after `count` (B, 1) steps of a chunk."""
    start, carried = packing.start, count.nan_to_num(0).clamp(0, length).round().long()
    index = torch.arange(packing.steps, device=start.device).expand_as(start)
    if packing.valid is not None:
        start, index = start & packing.valid, packing.valid.cumsum(1) - 1
    position = index - index.where(start, -carried).cummax(1).values
    begins = start | (position % length == 0)
    cut = Packing(begins, packing.valid)
    first = cut.chunks(length).source[:, -1]  # in order, as no segment holds two chunks
    rows = first // packing.steps
    opens = torch.ones_like(rows, dtype=torch.bool)
    opens[1:] = rows[1:] != rows[:-1]
    marks = (opens, start.flatten()[first], ~begins.flatten()[first])
    return Segments(cut, rows, *(mark[:, None] for mark in marks))


@register("focus")
class Focus(Mixer):
    """The state is a FocusState."""

    Options = FocusOptions
    recurrence_parameters = ("log_rate", "angle")

    def __init__(self, d_model: int, options: FocusOptions):
        super().__init__()
        self.unit, self.length = Transformer(d_model, options), options.window
        self.log_rate = nn.Parameter(log_rates((d_model,), options))
        self.angle = nn.Parameter(torch.randn(d_model))
        self.adapt = nn.Linear(d_model, 2 * d_model, bias=False)  # A and B
        self.d = nn.Parameter(torch.randn(d_model))

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> FocusState:
        width = len(self.d)
        shapes = ((width, 2), (width,), (width,), (1,))
        zeros = (
            torch.zeros(batch_size, *each, dtype=self.d.dtype, device=device) for each in shapes
        )
        z, before, total, steps = zeros
        return FocusState(z, before, total, steps, self.unit.initial_state(batch_size, device))

    def constants(self) -> Any:
        return self.unit.constants()

    def forward(self, x: Tensor, state: FocusState, packing: Packing) -> tuple[Tensor, FocusState]:
        if packing.valid is not None:
            x = x.where(packing.valid[..., None], 0)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.d.dtype)
            state = state._replace(steps=ops.coefficient("count", state.steps))
            cut = segments(packing, state.steps, self.length)
            before, total, count = _sums(x, state, cut, self.length)
            pole, gain = self._filters(_of_steps(before[0], cut, self.length))
            y, z = _scan(gain * x, pole, torch.view_as_complex(state.z), packing)
            y = y.real + self.d * x
        with ops.scope("unit", 0):
            y, ring = self.unit(y, state.ring, cut.packing)
        return y, FocusState(torch.view_as_real(z), before[1], total, count, ring)

    def step(self, x: Tensor, state: FocusState, constants: Any) -> tuple[Tensor, FocusState]:
        z, before, *chunk = state
        full = state.steps.round() >= self.length  # (B, 1)
        before = torch.where(full, state.total, before)
        total, count, ring = tree_map(lambda leaf: _emptied(leaf, full), tuple(chunk))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.d.dtype)
            pole, gain = self._filters(before)
            z = torch.addcmul(_complex(gain * x), pole, torch.view_as_complex(z))
            y = z.real + self.d * x
        y, ring = self.unit.step(y, ring, constants)
        return y, FocusState(torch.view_as_real(z), before, total + x, count + 1, ring)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return -coefficients["rate"]

    def _filters(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """λ and √(1 − |λ|²), each (…, D), from the sum over the chunk before."""
        by_rate, by_angle = self.adapt(before / self.length).chunk(2, -1)
        rate = ops.coefficient("rate", torch.exp(self.log_rate + by_rate))
        angle = ops.coefficient("angle", math.pi * torch.sigmoid(self.angle + by_angle))
        return torch.exp(torch.complex(-rate, angle)), (-torch.expm1(-2 * rate)).sqrt()


def _sums(
    x: Tensor, state: FocusState, cut: Segments, length: int
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Sums over the chunk before: of each segment (N, D), and of each row's last one (B, D); of
    this last one itself (B, D); and how many steps it has (B, 1)."""
    layout, zero = cut.packing.chunks(length), x.new_zeros(())
    total = to_chunks(x, layout).sum(1) + state.total[cut.rows].where(cut.continues, zero)
    carried = torch.where(cut.continues, state.before[cut.rows], state.total[cut.rows])
    earlier = torch.cat([x.new_zeros(1, x.shape[2]), total])[:-1]
    before = torch.where(cut.opens_row, carried, earlier).where(~cut.opens_episode, zero)
    rows, last = layout.final_rows, layout.final_chunks
    count = layout.final_lengths[:, None] + state.steps[rows].where(cut.continues[last], zero)
    finals = (before[last], total[last], count)
    pairs = zip((state.before, state.total, state.steps), finals, strict=True)
    final_before, final_total, count = (old.index_copy(0, rows, new) for old, new in pairs)
    return (before, final_before), final_total, count


def _of_steps(x: Tensor, cut: Segments, length: int) -> Tensor:
    """x (N, D) of segments as (B, T, D) of their steps."""
    layout = cut.packing.chunks(length)
    return from_chunks(x[:, None].expand(-1, length, -1), layout, cut.packing.rows)


def _emptied(leaf: Tensor, full: Tensor) -> Tensor:
    """0 in the rows where `full` (B, 1)."""
    return leaf.masked_fill(full.view(-1, *[1] * (leaf.ndim - 1)), 0)


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x, torch.zeros_like(x))


def _scan(u: Tensor, pole: Tensor, z: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """z_t = pole_t z_{t−1} + u_t, the k-th steps of all episodes at once."""
    layout = packing.chunks(1)
    if not layout.counts:
        return torch.zeros_like(pole), z
    inputs, before = pack(torch.cat([_complex(u), pole], 2), z[:, None], layout)
    now = before[:, 0]
    found: list[Tensor] = []
    ended: list[Tensor] = []
    for both in inputs.split(layout.counts):
        u_t, pole_t = both.chunk(2, 1)
        now = torch.addcmul(u_t, pole_t, shrink(now, len(both), ended))
        found.append(now)
    after = torch.cat([now, *reversed(ended)])[:, None]
    states, final = unpack(torch.cat(found), after, z[:, None], layout, u.shape[1])
    return states, final[:, 0]
