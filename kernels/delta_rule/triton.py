"""delta_rule fused for CUDA: three launches forward, four backward, resets inside.

What is kept for the backward pass beside the inputs is the state before each chunk of L steps, and
of its steps what they write, two vectors of L and three of K.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from decision_s4.kernels.choice import check
from decision_s4.kernels.delta_rule import triton_backward as backwards
from decision_s4.kernels.delta_rule import triton_forward as forwards
from decision_s4.kernels.delta_rule.misfit import misfit
from decision_s4.kernels.packing import Packing


class Launch(NamedTuple):
    """Of `prepare` or `key_gradients`."""

    warps: int
    keys: int
    """Taken at once."""


class Config(NamedTuple):
    """How the kernels are launched."""

    chunk: int
    """L."""
    warps: int
    """Of those that walk along rows, and of those that take values."""
    values: int
    """Of a tile of the state that is walked with."""
    prepare: Launch
    gradients: Launch


WIDE = Config(32, 4, 64, Launch(2, 32), Launch(4, 64))
# Chunks of 64 are slower, and in one of their configurations gradients were wrong on an H200.
NARROW = WIDE._replace(values=32)
CONFIGS = WIDE, NARROW
FEW = 128  # sequences: more keep a large GPU busy as they are


def scan(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    v: Tensor,
    log_gate: Tensor,
    state: Tensor,
    packing: Packing,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """See `delta_rule`."""
    check("delta_rule", q.device, misfit(q, k, w, v))
    config = config or _config(v)
    inputs = q, k, w, v, log_gate, state.float()
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with torch.cuda.device_of(v):
        o, final = FusedScan.apply(*inputs, packing.marks, config, keep)
    return o, final.to(state.dtype)


def _config(v: Tensor) -> Config:
    """A state in more tiles where few sequences would fill no GPU, or a wide tile no registers."""
    few = v.shape[0] * v.shape[2] <= FEW
    return NARROW if few or v.dtype == torch.float32 else WIDE


class Shape(NamedTuple):
    """Sizes, and how a scan of them is cut."""

    rows: int
    steps: int
    heads: int
    keys: int
    values: int
    per_key: bool
    low: bool
    chunk: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows * self.heads, triton.cdiv(self.steps, self.chunk)

    def flags(self, names: str, values: int = 64, keys: int | None = None) -> dict[str, Any]:
        """The named ones of what the kernels are specialised for, with so wide a tile."""
        width = min(keys or self.keys, triton.next_power_of_2(self.keys))
        known = {
            "HEADS": self.heads,
            "V": self.values,
            "K": self.keys,
            "KEYS": max(16, triton.next_power_of_2(width)),
            "VALUES": min(values, max(16, triton.next_power_of_2(self.values))),
            "L": self.chunk,
            "LEVELS": self.chunk.bit_length() - 1,
            "PER_KEY": self.per_key,
            "PRECISION": "bf16" if self.low else "tf32x3",
            "EXACT": "parts" if self.low else "tf32x3",
        }
        return {name: known[name] for name in names.split()}


BASE = "HEADS V VALUES L PRECISION"
TABLE = f"{BASE} K KEYS"
WALK = "V VALUES L PRECISION K KEYS PER_KEY"
WALK_BACK = f"{WALK} HEADS"
ALL = f"{WALK_BACK} LEVELS EXACT"


class Handed(NamedTuple):
    """What `prepare` hands on; see triton_forward.py."""

    read: Tensor
    inverse: Tensor
    reading: Tensor
    removed: Tensor
    late: Tensor
    written: Tensor
    decays: Tensor
    cuts: Tensor


class FusedScan(torch.autograd.Function):
    """Every argument of `delta_rule`, the packing as its marks; whether there will be gradients."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *inputs, state, marks, config, keep = given
        q, k, w, v, gate, state, marks = (x.contiguous() for x in (*inputs, state, marks))
        shape = _shape(k, v, gate, config)
        steps, warps = shape.steps, {"num_warps": config.warps}
        x = _room(v, shape, keep)
        forwards.prepare[shape.grid](
            q, k, w, v, gate, marks, *x, steps,
            **shape.flags(ALL, keys=config.prepare.keys), num_warps=config.prepare.warps, KEEP=keep,
        )  # fmt: skip
        before, final = _states(state, shape)
        walk = shape.flags(WALK, config.values)
        forwards.carry[_tiles(shape, walk)](
            x.removed, x.late, x.written, x.decays, x.cuts, state, before, final,
            steps, **walk, **warps,
        )  # fmt: skip
        o, flags = torch.empty_like(v), shape.flags(TABLE)
        grid = *shape.grid, triton.cdiv(shape.values, flags["VALUES"])
        forwards.outputs[grid](
            x.read, x.reading, x.written, marks, before, o, steps, **flags, **warps
        )
        ctx.save_for_backward(q, k, w, gate, marks, *x, before)
        ctx.shape, ctx.config = shape, config
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        q, k, w, gate, marks, *handed, before = ctx.saved_tensors
        x, shape, config = Handed(*handed), ctx.shape, ctx.config
        do, d_final = do.contiguous(), d_final.contiguous()
        steps, warps = shape.steps, {"num_warps": config.warps}
        base, d_written = shape.flags(BASE), torch.empty_like(x.written)
        grid = *shape.grid, triton.cdiv(shape.values, base["VALUES"])
        backwards.reach[grid](x.read, marks, do, d_written, steps, **base, **warps)
        after, d_state = _states(d_final, shape)
        walk = shape.flags(WALK_BACK, config.values)
        backwards.carry_back[_tiles(shape, walk)](
            x.reading, x.removed, x.late, x.decays, x.cuts, marks, do, d_written,
            d_final, after, d_state, steps, **walk, **warps,
        )  # fmt: skip
        dv, d_read, d_found = (torch.empty_like(like) for like in (do, x.read, x.read))
        backwards.value_gradients[shape.grid](
            x.inverse, x.written, marks, do, d_written, dv, d_read, d_found,
            steps, **base, **warps,
        )  # fmt: skip
        flags = shape.flags(ALL, keys=config.gradients.keys)
        blocks = triton.cdiv(shape.keys, flags["KEYS"])
        dq, dk, dw, d_gate = (torch.empty_like(like) for like in (q, k, w, gate))
        parts = not shape.per_key and blocks > 1
        d_gates = do.new_empty(blocks, *gate.shape, dtype=torch.float32) if parts else d_gate
        backwards.key_gradients[(*shape.grid, blocks)](
            q, k, w, gate, marks, x.written, before, after, do, dv, d_read, d_found,
            dq, dk, dw, d_gates, steps, shape.rows, **flags, num_warps=config.gradients.warps,
        )  # fmt: skip
        if parts:
            d_gate = d_gates.sum(0).to(gate.dtype)
        return dq, dk, dw, dv, d_gate, d_state, None, None, None


def _shape(k: Tensor, v: Tensor, gate: Tensor, config: Config) -> Shape:
    (rows, steps, heads, keys), low = k.shape, v.dtype == torch.bfloat16
    chunk = min(config.chunk, max(16, triton.next_power_of_2(steps)))
    return Shape(rows, steps, heads, keys, v.shape[3], gate.shape[3] > 1, low, chunk)


def _room(v: Tensor, shape: Shape, keep: bool) -> Handed:
    """For what `prepare` hands on, in the type of the values."""
    (sequences, chunks), side = shape.grid, shape.chunk
    widths = side, side if keep else 0, *[shape.keys] * 3, shape.values
    rooms = [v.new_empty(sequences, chunks, side, width) for width in widths]
    gates = shape.keys if shape.per_key else 1
    decays = v.new_empty(sequences, chunks, gates, dtype=torch.float32)
    cuts = v.new_empty(sequences, chunks, 2, dtype=torch.int32)
    return Handed._make([*rooms, decays, cuts])


def _states(begin: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Room for the state before each chunk, and for the last."""
    return begin.new_empty(*shape.grid, *begin.shape[2:]), torch.empty_like(begin)


def _tiles(shape: Shape, flags: dict[str, Any]) -> tuple[int, int]:
    """A program a sequence and tile of its state."""
    return shape.grid[0], triton.cdiv(shape.values, flags["VALUES"])
