"""What taking away inputs, or giving them back, in the order of a map does to the answer.

A cell is one feature of one step. Taken away, it holds what other episodes held at that step, the
same for every order, so that orders differ by nothing but the map. Counts of cells are spaced
evenly in their logarithm: the few that matter most would pass unseen among shares of 10%.
Shapes: W steps, F features, N = W · F cells, M masks, K baselines.
"""

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.probes.context import Context

COUNTS = 12
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of comprehensiveness and sufficiency (arXiv 1911.03429)
LARGER_IS_BETTER = {
    "deletion": True,
    "insertion": False,
    "positive − negative": True,
    "comprehensiveness": True,
    "sufficiency": False,
}
"""Measures, all in units of the answer."""


def measures(context: Context, values: Tensor, base: Tensor, seed: int = 0) -> dict[str, float]:
    """What taking cells in the order of `values` (W, F) does to the answer.

    deletion: mean |y(without the first c cells) − y| over counts c (Samek, arXiv 1509.06321)
    insertion: mean |y(with the first c cells only) − y| (Petsiuk et al., arXiv 1806.07421)
    positive − negative: mean y without the most negative cells − mean y without the most positive
    comprehensiveness, sufficiency: deletion and insertion at SHARES (arXiv 1911.03429)
    """
    shares = np.maximum(1, np.round(np.array(SHARES) * values.numel()).astype(int))
    counts = _counts(values)
    by_size, by_sign = _places(values.abs(), seed), _places(values, seed)
    takes = {
        "deletion": _first(by_size, counts),
        "insertion": ~_first(by_size, counts),
        "positive": _first(by_sign, counts),
        "negative": _first(values.numel() - 1 - by_sign, counts),
        "comprehensiveness": _first(by_size, shares),
        "sufficiency": ~_first(by_size, shares),
    }
    answers = _without(context, torch.cat(list(takes.values())), base)  # (M, K)
    found = dict(zip(takes, answers.split([len(take) for take in takes.values()]), strict=True))
    gap = (found.pop("negative") - found.pop("positive")).mean().item()
    away = {name: (y - context.prediction).abs().mean().item() for name, y in found.items()}
    return away | {"positive − negative": gap}


def deletion(context: Context, values: Tensor, base: Tensor, seed: int = 0) -> float:
    """That of `measures` alone."""
    taken = _first(_places(values.abs(), seed), _counts(values))
    return (_without(context, taken, base) - context.prediction).abs().mean().item()


def _counts(values: Tensor) -> np.ndarray:
    """Numbers of cells taken away."""
    return np.unique(np.geomspace(1, values.numel(), COUNTS).round().astype(int))


def _places(values: Tensor, seed: int) -> Tensor:
    """(N,) each cell's place in the order, largest value first; ties fall at random."""
    shuffled = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(seed)).to(
        values.device
    )
    order = shuffled[values.flatten()[shuffled].argsort(descending=True, stable=True)]
    return order.argsort()


def _first(places: Tensor, counts: np.ndarray) -> Tensor:
    """(M, N) bool: which cells are among the first of each count."""
    return places < torch.from_numpy(counts).to(places.device)[:, None]


@torch.no_grad()
def _without(context: Context, taken: Tensor, base: Tensor) -> Tensor:
    """(M, K) answers where the cells `taken` (M, N) hold the values of base (K, W, F)."""
    x = context.features
    where = taken.view(-1, 1, *x.shape)
    variants = torch.where(where, base, x)
    return context.answer(variants.flatten(0, 1)).view(variants.shape[:2])
