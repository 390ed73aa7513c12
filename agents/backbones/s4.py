"""S4 and S4D: linear state-space layers, a single-input single-output system a channel.

    x'(t) = A x(t) + B u(t),  y(t) = C x(t) + D u(t)

S4 (arXiv 2111.00396): A = diag(Λ) − p p* initialised to HiPPO-LegS, bilinear discretisation.
S4D (arXiv 2206.11893): A = diag(Λ), zero-order hold.
The state holds one of each conjugate pair, as real pairs: (B, D, N/2, 2).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.fixed import Fixed
from decision_s4.agents.backbones.hippo import normal_plus_low_rank
from decision_s4.agents.backbones.initial import check_range, log_uniform
from decision_s4.envs.errors import UserError, nearest
from decision_s4.kernels.lti_scan import (
    Prepared,
    System,
    fastest,
    lti_scan,
    lti_step,
    prepare,
    transition,
)
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class S4Options:
    """Options of `s4`."""

    d_state: int = 64
    """Size N of each channel's state; even."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """Time steps are drawn log-uniformly from [dt_min, dt_max]; 1 / dt is the horizon in steps."""
    train_ssm: bool = False
    """Whether poles, input vector and time steps are trained too; C and D always are. On Hopper it
    changes no return and costs half as much time again."""


@dataclass(frozen=True)
class S4DOptions(S4Options):
    """Options of `s4d`."""

    init: Literal["legs", "lin", "inv"] = "legs"
    """Initial poles, after the S4D paper's sections 4.2 to 4.4."""


class LinearStateSpace(Mixer):
    """What S4 and S4D share: (D, N/2) poles, B, C, D, the output's GELU and mixing of channels."""

    recurrence_parameters: tuple[str, ...] = ("log_dt", "log_decay", "frequency", "b", "c")
    recordable = True
    mixing: ClassVar = {"layer": "channels"}
    marked = True

    def __init__(self, d_model: int, options: S4Options):
        super().__init__()
        _check(options)
        self.shape = (d_model, options.d_state // 2)
        self.log_dt = nn.Parameter(log_uniform(d_model, options.dt_min, options.dt_max))
        # Zero: a policy begins without memory and takes up what pays. Random read-outs of the past
        # are noise that it never quite unlearns (expert Hopper: return 805 so, 3420 from zero).
        self.c = nn.Parameter(torch.zeros(*self.shape, 2))
        self.d = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, d_model)
        self._fixed = Fixed()

    def _start_from(self, poles: np.ndarray, b: np.ndarray) -> None:
        self.log_decay = self._per_channel(np.log(-poles.real))
        self.frequency = self._per_channel(poles.imag)
        self.b = self._per_channel(np.stack([b.real, b.imag], -1))

    def _per_channel(self, values: np.ndarray) -> nn.Parameter:
        value = torch.tensor(values, dtype=torch.get_default_dtype())
        return nn.Parameter(value.expand(self.shape[0], *value.shape).clone())

    def _freeze(self, train_ssm: bool) -> None:
        for name in set(self.recurrence_parameters) - {"c"}:
            getattr(self, name).requires_grad_(train_ssm)

    def poles(self) -> Tensor:
        """Λ (D, N/2) complex; real parts are negative by construction."""
        return torch.complex(-self.log_decay.exp(), self.frequency)

    def discretise(self) -> System:
        """The discrete system of each channel, at its own time step."""
        raise NotImplementedError

    def _constants(self) -> tuple[System, Prepared | None]:
        """What follows from all but c, whatever c is."""
        system = self.discretise()
        return system, prepare(system) if fastest(system) == "triton" else None

    def system(self) -> tuple[System, Prepared | None]:
        """`discretise`, computed once where only c is trained, and what a fused scan needs then."""
        names = [name for name in self.recurrence_parameters if name != "c"]
        parameters = [getattr(self, name) for name in names]
        if any(parameter.requires_grad for parameter in parameters):
            return self.discretise(), None
        system, prepared = self._fixed(self._constants, parameters)
        return system._replace(c=torch.view_as_complex(self.c)), prepared

    def constants(self) -> tuple[System, Tensor]:
        return self.discretise(), self.d

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(batch_size, *self.shape, 2, dtype=self.c.dtype, device=device)

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            u = ops.tap("layer.values", x.to(self.c.dtype))
            system, prepared = self.system()
            y, state = lti_scan(u, system, state, packing, ops.impl(), prepared)
            y = ops.tap("layer.mixed", y) + self.d * u
        return self.mix_channels(y), state

    def kernel(self, steps: int) -> Tensor:
        """(T, D) what an input adds to the output 0, 1, … steps later, the skip left out."""
        state = self.initial_state(1, self.d.device)
        impulse = torch.zeros(1, steps, len(self.d), dtype=self.d.dtype, device=self.d.device)
        impulse[:, 0] = 1
        return lti_scan(impulse, self.discretise(), state, Packing.unbroken(1, steps))[0][0]

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        kernel = self.kernel(packing.steps)
        return rows.each(steps, lambda t: rows.toeplitz(kernel, packing, t))

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        return torch.linalg.eigvals(transition(self.discretise())).abs().log()

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        y, state = self.remember(x, state, constants)
        return self.mix_channels(y), state

    def remember(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        """`step` before its channels are mixed: each channel's own output (B, D)."""
        system, d = constants
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(self.c.dtype)
            y, state = lti_step(u, system, state)
            return y + d * u, state

    def read_out(self, state: State, constants: Any) -> Tensor:
        """What the memory (B, D, N/2, 2) alone adds to the output of the step to come: (B, D)."""
        system, _ = constants
        return lti_step(torch.zeros_like(state[..., 0, 0]), system, state)[0]

    def respond(self, x: Tensor, read_out: Tensor, constants: Any) -> Tensor:
        """`step`'s output for input x (B, D), given the read-out in place of the state."""
        system, d = constants
        own = 2 * (system.c * system.b).real.sum(-1)  # of an input on the output at once
        return self.mix_channels(read_out + (own + d) * x)

    def mix_channels(self, y: Tensor) -> Tensor:
        """The layer's output, from each channel's own (…, D)."""
        return ops.act(self.out(ops.act(y, "gelu")), "gelu")


def linear_of(mixer: Mixer) -> LinearStateSpace:
    """A mixer that is known to be one of them."""
    assert isinstance(mixer, LinearStateSpace)
    return mixer


@register("s4")
class S4(LinearStateSpace):
    """Diagonal plus low rank, HiPPO-LegS, bilinear."""

    Options = S4Options
    recurrence_parameters = (*LinearStateSpace.recurrence_parameters, "p")

    def __init__(self, d_model: int, options: S4Options):
        super().__init__(d_model, options)
        hippo = normal_plus_low_rank(options.d_state)
        self._start_from(hippo.a, hippo.b)
        self.p = self._per_channel(np.stack([hippo.p.real, hippo.p.imag], -1))
        self._freeze(options.train_ssm)

    def discretise(self) -> System:
        """Bilinear: Ā = (z − A)⁻¹ (z + A) = 2z (z − A)⁻¹ − I, B̄ = 2 (z − A)⁻¹ B, z = 2 / dt.

        By Woodbury's identity (z − A)⁻¹ = R − R p (1 + p* R p)⁻¹ p* R with R = 1 / (z − Λ):
        Ā is diagonal plus rank one again. A product p* x counts both of each conjugate pair.
        """
        z = 2 * torch.exp(-self.log_dt)[:, None]
        p, b = torch.view_as_complex(self.p), torch.view_as_complex(self.b)
        resolvent = 1 / (z - self.poles())
        v = p.conj() * resolvent
        w = resolvent * p / (1 + 2 * (v * p).real.sum(-1, keepdim=True))
        b = 2 * (resolvent * b - w * 2 * (v * b).real.sum(-1, keepdim=True))
        return System(2 * z * resolvent - 1, b, torch.view_as_complex(self.c), 2 * z * w, v)


@register("s4d")
class S4D(LinearStateSpace):
    """Diagonal, zero-order hold."""

    Options = S4DOptions

    def __init__(self, d_model: int, options: S4DOptions):
        super().__init__(d_model, options)
        self._start_from(*_diagonal_start(options.init, options.d_state))
        self._freeze(options.train_ssm)

    def discretise(self) -> System:
        """Ā = e^{dt A}, B̄ = (e^{dt A} − 1) / A · B."""
        poles = self.poles()
        exponent = poles * torch.exp(self.log_dt)[:, None]
        b = torch.view_as_complex(self.b) * torch.expm1(exponent) / poles
        return System(torch.exp(exponent), b, torch.view_as_complex(self.c))


def _diagonal_start(init: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    n = np.arange(size // 2)
    if init == "legs":
        hippo = normal_plus_low_rank(size)
        return hippo.a, hippo.b
    if init == "lin":
        frequency = math.pi * n
    elif init == "inv":
        frequency = size / math.pi * (size / (2 * n + 1) - 1)
    else:
        raise UserError(f"init '{init}' is unknown{nearest(init, ('legs', 'lin', 'inv'))}")
    return -0.5 + 1j * frequency, np.ones(size // 2, dtype=complex)


def _check(options: S4Options) -> None:
    if options.d_state < 2 or options.d_state % 2:
        raise UserError(f"d_state {options.d_state} must be even and at least 2, as poles pair up")
    check_range(options, "dt_min", "dt_max")
