"""lti_scan by chunks: inside a chunk a Toeplitz product, between chunks the state is passed on.

Shapes: H channels, N = 2n real states, L chunk length, M chunks. All work is batched matrix
products over channels. Episodes are cut so that no chunk holds two (see chunk_layout.py); a reset
therefore costs nothing and needs no mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.kernels.chunk_layout import ChunkLayout
from decision_s4.kernels.chunks import chunk_for, from_chunks, states_before, to_chunks
from decision_s4.kernels.lti_scan.system import System, columns, rows, transition
from decision_s4.kernels.packing import Packing

CHUNK = 64  # of 16 … 128 the fastest at H = 64, N = 64: about N, where the products balance
LONG_CHUNK = 256  # on CUDA, where launches are the bound: a quarter of the states to pass on


class Operators(NamedTuple):
    """What a chunk does, as matrices, to its inputs u (latest first) and the state x before it."""

    inject: Tensor
    """(H, L, L + N): u -> outputs from u alone, and the state after the chunk from u alone."""
    read: Tensor
    """(H, N, L): x -> outputs."""
    powers: tuple[Tensor, ...]
    """Ā^1, Ā^2, Ā^4, …, Ā^L: (H, N, N), transposed; (H, n) complex when diagonal."""


def scan(
    u: Tensor, system: System, state: Tensor, packing: Packing, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """See `lti_scan`."""
    batch, steps, _ = u.shape
    length = chunk_for(steps, chunk) if chunk else chunk_length(steps, u.device)
    layout = packing.chunks(length)
    if not layout.counts:
        return torch.zeros_like(u), state
    operators = _operators(system, length)

    chunks = to_chunks(u, layout).flip(1).permute(2, 0, 1)  # (H, M, L), latest first
    direct, injected = torch.bmm(chunks, operators.inject).split(
        [length, operators.read.shape[1]], dim=2
    )
    carried = columns(torch.view_as_complex(state)).transpose(0, 1)  # (H, B, N)
    before = states_before(
        injected,
        carried,
        layout,
        lambda x, gained, _: _advance(x, operators.powers[-1]) + gained,
        dim=1,
    )  # (H, M, N)
    y = torch.baddbmm(direct, before, operators.read).permute(1, 2, 0)
    y = from_chunks(y, layout, batch)

    final = _final(u, before, operators, layout)
    final = carried.index_copy(1, layout.final_rows, final).transpose(0, 1)
    return y, torch.stack(final.chunk(2, dim=-1), dim=-1)


def _final(u: Tensor, before: Tensor, operators: Operators, layout: ChunkLayout) -> Tensor:
    """(H, F, N) states after the last step of rows, from those before their last chunks."""
    channels, length = u.shape[2], layout.source.shape[1]
    padded = torch.cat([u.reshape(-1, channels), u.new_zeros(1, channels)])
    tail = padded[layout.tail].permute(2, 0, 1)  # (H, F, L)
    carried = _remainder(before[:, layout.final_chunks], operators, layout.final_lengths)
    return carried + torch.bmm(tail, operators.inject[..., length:])


def chunk_length(steps: int, device: torch.device) -> int:
    """L for rows of so many steps."""
    return chunk_for(steps, LONG_CHUNK if device.type == "cuda" else CHUNK)


def _operators(system: System, length: int) -> Operators:
    powers, ahead, behind = (_diagonal if system.w is None else _dense)(system, length)
    kernel = torch.bmm(rows(system.c)[:, None], ahead).squeeze(1)  # (H, L): c Ā^l b
    padded = torch.cat([kernel.new_zeros(len(kernel), length - 1), kernel], dim=1)
    toeplitz = padded.unfold(1, length, 1)  # [r, i] = kernel[i − (L − 1 − r)]
    return Operators(torch.cat([toeplitz, ahead.transpose(1, 2)], dim=2), behind, powers)


def _diagonal(system: System, length: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Powers by squaring, their rows by doubling: far cheaper than complex `pow`."""
    power, powers = system.a, [system.a]
    vandermonde = torch.ones_like(power)[..., None]  # (H, n, 1): a^l
    while vandermonde.shape[2] < length:
        vandermonde = torch.cat([vandermonde, vandermonde * power[..., None]], dim=2)
        power = power * power
        powers.append(power)
    ahead = columns((system.b[..., None] * vandermonde).transpose(1, 2))
    behind = rows(((system.c * system.a)[..., None] * vandermonde).transpose(1, 2))
    return tuple(powers), ahead.transpose(1, 2), behind.transpose(1, 2)


def _dense(system: System, length: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Powers by squaring, their columns and rows by doubling."""
    power = transition(system)
    ahead = columns(system.b)[:, :, None]  # (H, N, 1): Ā^l b
    behind = torch.bmm(power.transpose(1, 2), rows(system.c)[:, :, None])  # Ā^T^(l+1) c
    powers = [power.transpose(1, 2)]
    while ahead.shape[2] < length:
        ahead = torch.cat([ahead, torch.bmm(power, ahead)], dim=2)
        behind = torch.cat([behind, torch.bmm(power.transpose(1, 2), behind)], dim=2)
        power = torch.bmm(power, power)
        powers.append(power.transpose(1, 2))
    return tuple(powers), ahead, behind


def _advance(x: Tensor, power: Tensor) -> Tensor:
    """x (H, S, N) times a power of Ā."""
    if power.is_complex():
        return columns(torch.complex(*x.chunk(2, dim=-1)) * power[:, None])
    return torch.bmm(x, power)


def _remainder(x: Tensor, operators: Operators, lengths: Tensor) -> Tensor:
    """Ā^lengths x, by the binary digits of each length."""
    place = torch.arange(len(operators.powers), device=lengths.device)[:, None]
    digits = ((lengths >> place) & 1).bool()[..., None]
    for digit, power in zip(digits.unbind(), operators.powers, strict=True):
        x = torch.where(digit, _advance(x, power), x)
    return x
