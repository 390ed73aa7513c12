"""What S5 and the linear recurrent unit share: one diagonal system that all channels feed.

    x_t = a ∘ x_{t−1} + B u_t,   y_t = share · Re(C x_t) + d ∘ u_t

Shapes: D channels, P complex states. A state is (B, P, 2), real and imaginary parts.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State
from decision_s4.kernels.diagonal_scan import diagonal_scan, diagonal_step
from decision_s4.kernels.packing import Packing


class MimoSystem(NamedTuple):
    """The discrete system, its complex matrices as real ones over interleaved parts of x."""

    a: Tensor
    """(P,) complex."""
    b: Tensor
    """(D, 2P)."""
    c: Tensor
    """(2P, D)."""
    d: Tensor
    """(D,)."""


class MimoStateSpace(Mixer):
    """A subclass says what the discrete poles and B are, and how the outputs are mixed."""

    recurrence_parameters: tuple[str, ...] = ("b", "c")
    recordable = True
    mixing: ClassVar = {"layer": "dense"}
    share: ClassVar[int] = 1
    """How often a pole counts in y: 2 where it stands for its conjugate too."""

    def __init__(self, d_model: int, n_poles: int):
        super().__init__()
        # Complex normal, E|b|² = 1 / D: the input's scale is kept.
        self.b = nn.Parameter(torch.randn(n_poles, d_model, 2) / (2 * d_model) ** 0.5)
        # Zero, as in S4 (see s4.py): a policy begins without memory and takes up what pays.
        self.c = nn.Parameter(torch.zeros(d_model, n_poles, 2))
        self.d = nn.Parameter(torch.randn(d_model))

    def discretise(self) -> tuple[Tensor, Tensor]:
        """Poles (P,) and input matrix (P, D) of the discrete system, complex."""
        raise NotImplementedError

    def mix_channels(self, y: Tensor) -> Tensor:
        """The nonlinear end of the layer: y (…, D) -> (…, D)."""
        raise NotImplementedError

    def constants(self) -> MimoSystem:
        a, b = self.discretise()
        c = self.share * torch.view_as_complex(self.c)
        outward = torch.view_as_real(c.conj_physical())  # Re(c x) = Re c Re x − Im c Im x
        inward = torch.view_as_real(b).transpose(0, 1).flatten(1)
        return MimoSystem(a, inward, outward.flatten(1).T, self.d)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(batch_size, len(self.b), 2, dtype=self.b.dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            system, u = self.constants(), ops.tap("layer.values", x.to(self.b.dtype))
            driven, carried = _complex(u @ system.b), torch.view_as_complex(state)
            states, final = diagonal_scan(driven, system.a, carried, packing, ops.impl())
            y = _read(states, system, u)
        return self.mix_channels(y), torch.view_as_real(final)

    def kernel(self, steps: int) -> Tensor:
        """(T, D, D) what an input adds to each output 0, 1, … steps later, the skip left out."""
        a, b = self.discretise()
        c = self.share * torch.view_as_complex(self.c)
        powers = torch.exp(torch.log(a) * torch.arange(steps, device=a.device)[:, None])
        return torch.einsum("op,tp,pi->toi", c, powers, b).real

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        kernel = self.kernel(packing.steps).flatten(1)
        return rows.each(steps, lambda t: rows.toeplitz(kernel, packing, t))

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return self.discretise()[0].abs().log()

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(self.b.dtype)
            driven = _complex(u @ constants.b)
            new = diagonal_step(driven, constants.a, torch.view_as_complex(state))
            y = _read(new, constants, u)
        return self.mix_channels(y), torch.view_as_real(new)


def _complex(parts: Tensor) -> Tensor:
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)))


def _read(states: Tensor, system: MimoSystem, u: Tensor) -> Tensor:
    mixed = ops.tap("layer.mixed", torch.view_as_real(states).flatten(-2) @ system.c)
    return mixed + system.d * u
