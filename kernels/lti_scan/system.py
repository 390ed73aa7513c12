"""The discretised system that lti_scan runs."""

from typing import NamedTuple

import torch
from torch import Tensor


class System(NamedTuple):
    """H single-input single-output systems; every field is (H, n) complex."""

    a: Tensor
    b: Tensor
    c: Tensor
    w: Tensor | None = None
    v: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The real type of states and outputs."""
        return self.a.real.dtype


def rows(z: Tensor) -> Tensor:
    """(…, n) complex as the (…, 2n) real row r for which r · [Re x; Im x] = 2 Re(z · x)."""
    return torch.cat([2 * z.real, -2 * z.imag], dim=-1)


def columns(z: Tensor) -> Tensor:
    """(…, n) complex as the (…, 2n) real column [Re z; Im z]."""
    return torch.cat([z.real, z.imag], dim=-1)


def transition(system: System) -> Tensor:
    """(H, N, N) real Ā, for states [Re x; Im x]."""
    re, im = torch.diag_embed(system.a.real), torch.diag_embed(system.a.imag)
    rotation = torch.cat([torch.cat([re, -im], 2), torch.cat([im, re], 2)], 1)
    if system.w is None or system.v is None:
        return rotation
    return rotation - columns(system.w)[:, :, None] * rows(system.v)[:, None, :]
