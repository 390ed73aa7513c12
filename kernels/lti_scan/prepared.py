"""What lti_scan's chunks need of (a, b, w, v) alone: computed once where those are not trained.

States are real here, as they are kept: Re x_0, Im x_0, Re x_1, …; a row r of them reads r · x.
Shapes: H channels, N = 2n real states, L steps a chunk, K = log2 L, R and Q with Q R = L.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.lti_scan.system import System, transition

CHUNK = 64  # steps; a power of two


class Prepared(NamedTuple):
    """Linear maps of c, as real pairs (H, N), and of states."""

    ahead: Tensor
    """(H, N, L): Ā^l b."""
    powers: Tensor
    """(K + 1, H, N, N): Ā^1, Ā^2, Ā^4, …, Ā^L."""
    rows: Tensor
    """(H, R N + L, N): c -> the rows c Ā, …, c Ā^R, then the outputs c Ā^l b."""
    later: Tensor
    """(H, Q N, N): the row c Ā^r -> c Ā^r, c Ā^{R + r}, …, c Ā^{(Q − 1) R + r}."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """L, N, R, Q."""
        _, size, length = self.ahead.shape
        return length, size, (self.rows.shape[1] - length) // size, self.later.shape[1] // size


@torch.no_grad()
def prepare(system: System, length: int = CHUNK) -> Prepared:
    """For chunks of `length` steps."""
    ahead, powers = chunk_maps(system, length)
    size, power = ahead.shape[1], powers[0]
    bits = length.bit_length() - 1
    inner = 1 << (bits - bits // 2)  # R
    first = [power]
    while len(first) < inner:
        first.append(torch.bmm(power, first[-1]))
    strides = [torch.eye(size, dtype=power.dtype, device=power.device).expand_as(power)]
    while len(strides) < length // inner:
        strides.append(torch.bmm(first[-1], strides[-1]))
    rows = [matrix.transpose(1, 2) for matrix in first] + [ahead.transpose(1, 2)]
    later = torch.cat([matrix.transpose(1, 2) for matrix in strides], dim=1)
    return Prepared(ahead, powers, torch.cat(rows, dim=1) * reading(size, ahead), later)


def reading(size: int, like: Tensor) -> Tensor:
    """(N,) signs and factors that make pairs c the row of 2 Re(c · x)."""
    place = torch.arange(size, device=like.device)  # no copy from the CPU: graphs allow none
    return (2 - 4 * (place % 2)).to(like.dtype)


def chunk_maps(system: System, length: int) -> tuple[Tensor, Tensor]:
    """`ahead` and `powers`, differentiable."""
    power = interleaved(transition(system), 1, 2)  # (H, N, N)
    ahead = torch.view_as_real(system.b).flatten(1)[..., None]
    powers = [power]
    while ahead.shape[2] < length:
        ahead = torch.cat([ahead, torch.bmm(power, ahead)], dim=2)
        power = torch.bmm(power, power)
        powers.append(power)
    return ahead, torch.stack(powers)


def interleaved(x: Tensor, *dims: int) -> Tensor:
    """From real parts before imaginary ones to pairs."""
    for dim in dims:
        halves = x.chunk(2, dim=dim)
        x = torch.stack(halves, dim=dim + 1).flatten(dim, dim + 1)
    return x
