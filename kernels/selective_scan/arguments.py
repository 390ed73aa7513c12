"""What every implementation of the selective scan is given, checked once.

Shapes: B rows, T steps, D channels, N states a channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Arguments:
    """See `selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    state: Tensor
    """In `dtype`, zeros if none was given."""
    start: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The type of states and sums: float64 if any input is, else float32."""
        return self.state.dtype

    def core(self) -> tuple[Tensor, ...]:
        """u, Δ, A, B, C in the type of the sums: all that the recurrence sees."""
        u, A, B, C = (x.to(self.dtype) for x in (self.u, self.A, self.B, self.C))
        return u, self._time_step(), A, B, C

    def _time_step(self) -> Tensor:
        delta = self.delta.to(self.dtype)
        if self.delta_bias is not None:
            delta = delta + self.delta_bias.to(self.dtype)
        return F.softplus(delta) if self.delta_softplus else delta

    def finish(self, y: Tensor) -> Tensor:
        """The outputs from y = C · h: skip, gate, and the type of u."""
        if self.D is not None:
            y = y + self.D.to(self.dtype) * self.u
        if self.z is not None:
            y = y * F.silu(self.z.to(self.dtype))
        return y.to(self.u.dtype)


def check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor | None,
    start: Tensor | None,
) -> Arguments:
    """The arguments of a scan over (B, T, D).

    Raises:
        ValueError: naming what has another shape, type or device than it needs.
    """
    if u.ndim != 3 or A.ndim != 2 or 0 in (*u.shape, *A.shape):
        raise ValueError(
            f"selective_scan: u has shape {tuple(u.shape)}, A {tuple(A.shape)}; "
            "they need (B, T, D) and (D, N), no dimension empty"
        )
    (rows, steps, channels), size = u.shape, A.shape[1]
    wanted = {
        "u": (u, (rows, steps, channels)),
        "delta": (delta, (rows, steps, channels)),
        "A": (A, (channels, size)),
        "B": (B, (rows, steps, size)),
        "C": (C, (rows, steps, size)),
        "D": (D, (channels,)),
        "z": (z, (rows, steps, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "state": (state, (rows, channels, size)),
    }
    given = {name: (x, shape) for name, (x, shape) in wanted.items() if x is not None}
    for name, (tensor, shape) in given.items():
        _check_one(name, tensor, shape, TYPES, u.device)
    if start is not None:
        _check_one("start", start, (rows, steps), (torch.bool,), u.device)
    double = any(tensor.dtype == torch.float64 for tensor, _ in given.values())
    dtype = torch.float64 if double else torch.float32
    if state is None:
        state = torch.zeros(rows, channels, size, dtype=dtype, device=u.device)
    return Arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state.to(dtype), start)


def _check_one(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    types: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"selective_scan: {name} has shape {tuple(tensor.shape)}; it needs {shape}"
        )
    if tensor.dtype not in types:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in types)
        raise ValueError(f"selective_scan: {name} has type {tensor.dtype}; it needs {names}")
    if tensor.device != device:
        raise ValueError(f"selective_scan: {name} is on {tensor.device}, u on {device}")
