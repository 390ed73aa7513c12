"""A sparse autoencoder: activations as sums of few of many directions.

    z = TopK(max(0, E (x − b)), k),   x̂ = D z + b,   columns of D of length 1

Gao et al., arXiv 2406.04093. Activations are centred and scaled to a mean square of 1 a feature.
Shapes: S steps, D features, M atoms.
"""

import torch
from torch import Tensor, nn

WIDTH = 4
"""Atoms, as a multiple of the features."""
ACTIVE = 8
"""k: atoms that a step may use."""
UPDATES, BATCH, RATE = 1500, 256, 3e-3


class SparseAutoencoder(nn.Module):
    """Fitted by `fit`; `forward` gives the reconstruction."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, atoms: int, active: int, generator: torch.Generator):
        super().__init__()
        self.active = min(active, atoms)
        start = nn.functional.normalize(torch.randn(atoms, features, generator=generator), dim=1)
        self.encoder = nn.Parameter(start.clone())
        self.threshold = nn.Parameter(torch.zeros(atoms))
        self.decoder = nn.Parameter(start)
        self.centre = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))

    def codes(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, M), at most k of them not 0."""
        x = (x - self.mean) / self.scale - self.centre
        z = torch.relu(x @ self.encoder.T + self.threshold)
        top = z.topk(self.active, -1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values)

    def decoded(self, codes: Tensor) -> Tensor:
        """(…, M) -> (…, D)."""
        return (codes @ self.decoder + self.centre) * self.scale + self.mean

    def forward(self, x: Tensor) -> Tensor:
        return self.decoded(self.codes(x.to(self.scale.dtype))).to(x.dtype)


def fit(
    x: Tensor, atoms: int | None = None, active: int = ACTIVE, updates: int = UPDATES, seed: int = 0
) -> SparseAutoencoder:
    """To activations (S, D): mean squared error, by Adam, the rate falling linearly to 0."""
    generator = torch.Generator().manual_seed(seed)
    x = x.float()
    model = SparseAutoencoder(x.shape[1], atoms or WIDTH * x.shape[1], active, generator)
    model.mean, model.scale = x.mean(0), (x - x.mean(0)).square().mean().sqrt().clamp(min=1e-8)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    fall = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, updates)
    with torch.enable_grad():
        for _ in range(updates):
            rows = x[torch.randint(len(x), (BATCH,), generator=generator)]
            error = (model(rows) - rows) / model.scale
            optimiser.zero_grad()
            error.square().mean().backward()
            optimiser.step()
            fall.step()
            with torch.no_grad():
                model.decoder.copy_(nn.functional.normalize(model.decoder, dim=1))
    return model.eval().requires_grad_(False)


def explained_variance(x: Tensor, reconstructed: Tensor) -> float:
    """1 − Σ |x − x̂|² / Σ |x − x̅|², of (S, D)."""
    return float(1 - (x - reconstructed).square().sum() / (x - x.mean(0)).square().sum())


def principal_reconstruction(x: Tensor, other: Tensor, components: int) -> Tensor:
    """`other` (S, D) by the first principal components of x, the same at every step."""
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:components]
    return (other - x.mean(0)) @ axes.T @ axes + x.mean(0)
