"""Differential Mamba: what two Mamba layers both attend to is noise, and is taken off.

    out = (1 − λ₀) RMSNorm(m₁(x) − λ m₂(x)),   λ = exp(a₁ · b₁) − exp(a₂ · b₂) + λ₀

Schneider, Zimerman, Nachmani, arXiv 2507.06204. As in the Differential Transformer (arXiv
2410.05258) λ₀ = 0.8 − 0.6 e^{−0.3 (l − 1)} in layer l = 1, 2, …, and a, b ~ N(0, 0.1²) at first.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decision_s4.agents.backbones import ops, rows
from decision_s4.agents.backbones.base import Mixer, State, register
from decision_s4.agents.backbones.mamba import Mamba, MambaOptions
from decision_s4.agents.backbones.module_list import ModuleList
from decision_s4.kernels.packing import Packing


@dataclass(frozen=True)
class DiffMambaOptions(MambaOptions):
    """Options of `diff-mamba`: those of both its Mamba layers."""

    expand: int = 1
    """Inner channels of each as a multiple of d_model: half of Mamba's, as there are two."""


@register("diff-mamba")
class DiffMamba(Mixer):
    """The state is that of both layers."""

    Options = DiffMambaOptions
    recordable = True

    def __init__(self, d_model: int, options: DiffMambaOptions, depth: int = 0):
        super().__init__()
        self.mixers = ModuleList(Mamba(d_model, options) for _ in range(2))
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.lambda_vectors = nn.Parameter(0.1 * torch.randn(2, 2, options.d_state))
        self.norm = ops.RMSNorm(d_model, eps=1e-5)

    @classmethod
    def layers(cls, d_model: int, options: Any, n_layers: int) -> list[Mixer]:
        return [cls(d_model, options, depth) for depth in range(n_layers)]

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> State:
        return tuple(mixer.initial_state(batch_size, device) for mixer in self.mixers)

    def constants(self) -> tuple[Any, Tensor]:
        return tuple(mixer.constants() for mixer in self.mixers), self._lambda()

    def forward(self, x: Tensor, state: State, packing: Packing) -> tuple[Tensor, State]:
        outputs, after = [], []
        for i, (mixer, before) in enumerate(zip(self.mixers, state, strict=True)):
            with ops.scope("mixers", i):
                y, new = mixer(x, before, packing)
            outputs.append(y)
            after.append(new)
        one, two = outputs
        return self._difference(one, two, self._lambda()), tuple(after)

    @torch.no_grad()
    def closed_rows(
        self, part: str, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
    ) -> Tensor:
        """(1 − λ₀) scale · (O₁ M₁ I₁ − λ O₂ M₂ I₂), M of each Mamba layer, I and O projections."""
        one, two = (
            _projected(mixer, coefficients.within(f"mixers.{i}."), packing, steps)
            for i, mixer in enumerate(self.mixers)
        )
        scale = (1 - self.lambda_init) * coefficients["scale"] * self.norm.weight
        found = (one - self._lambda() * two).flatten(1, 2)
        return rows.scale(found, scale.repeat_interleave(scale.shape[-1], -1), steps)

    def log_decays(self, coefficients: ops.Coefficients) -> Tensor:
        rates = (
            coefficients[f"mixers.{i}.step"][..., None] * mixer.constants()
            for i, mixer in enumerate(self.mixers)
        )
        return torch.cat(list(rates), 2)

    def step(self, x: Tensor, state: State, constants: Any) -> tuple[Tensor, State]:
        parts = zip(self.mixers, state, constants[0], strict=True)
        outputs, after = zip(*(mixer.step(x, *rest) for mixer, *rest in parts), strict=True)
        one, two = outputs
        return self._difference(one, two, constants[1]), after

    def _lambda(self) -> Tensor:
        one, two = (self.lambda_vectors[:, 0] * self.lambda_vectors[:, 1]).sum(-1).exp()
        return one - two + self.lambda_init

    def _difference(self, one: Tensor, two: Tensor, by: Tensor) -> Tensor:
        with torch.autocast(one.device.type, enabled=False):
            difference = one.to(by.dtype) - by * two.to(by.dtype)
            return (1 - self.lambda_init) * ops.norm(difference, self.norm, "scale")


def _projected(
    mixer: Mamba, coefficients: ops.Coefficients, packing: Packing, steps: Tensor
) -> Tensor:
    """O M I: (B, D, D, I, T), pairs of an output and an input of the layer."""
    inner = mixer.closed_rows("layer", coefficients, packing, steps)  # (B, E, I, T)
    read = mixer.out_proj.weight[:, :, None, None] * inner[:, None]
    return torch.einsum("boeit,ed->bodit", read, mixer.in_proj.weight[: inner.shape[1]])
