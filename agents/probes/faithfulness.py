"""Is a map true? Inputs are taken away, or given back, in its order, and the answer is watched.

A cell is one feature of one step. Taken away, it holds what other episodes held at that step, the
same for every order, so that orders differ by nothing but the map. Counts of cells are spaced
evenly in their logarithm: the few that matter most would pass unseen among shares of 10%.
Shapes: W steps, F features, N = W · F cells, M masks, K baselines, Q queries.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import AttributionProbe, Table
from decision_s4.agents.probes.baselines import baseline
from decision_s4.agents.probes.context import Context
from decision_s4.envs.statistics import bootstrap_interval

COUNTS = 12
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of comprehensiveness and sufficiency (arXiv 1911.03429)
DRAWS = 2
RANDOM_ORDERS = 2
LARGER_IS_BETTER = {
    "deletion": True,
    "insertion": False,
    "positive − negative": True,
    "comprehensiveness": True,
    "sufficiency": False,
}
"""Measures, all in units of the answer."""
GRADIENT, RANDOM = "plain gradient", "random order"

Map = Callable[[Context], Tensor]


def measures(context: Context, values: Tensor, base: Tensor, seed: int = 0) -> dict[str, float]:
    """What taking cells in the order of `values` (W, F) does to the answer.

    deletion: mean |y(without the first c cells) − y| over counts c (Samek, arXiv 1509.06321)
    insertion: mean |y(with the first c cells only) − y| (Petsiuk et al., arXiv 1806.07421)
    positive − negative: mean y without the most negative cells − mean y without the most positive
    comprehensiveness, sufficiency: deletion and insertion at SHARES (arXiv 1911.03429)
    """
    cells = values.numel()
    counts = np.unique(np.geomspace(1, cells, COUNTS).round().astype(int))
    shares = np.maximum(1, np.round(np.array(SHARES) * cells).astype(int))
    by_size, by_sign = _places(values.abs(), seed), _places(values, seed)
    takes = {
        "deletion": _first(by_size, counts),
        "insertion": ~_first(by_size, counts),
        "positive": _first(by_sign, counts),
        "negative": _first(cells - 1 - by_sign, counts),
        "comprehensiveness": _first(by_size, shares),
        "sufficiency": ~_first(by_size, shares),
    }
    answers = _without(context, torch.cat(list(takes.values())), base)  # (M, K)
    found = dict(zip(takes, answers.split([len(take) for take in takes.values()]), strict=True))
    gap = (found.pop("negative") - found.pop("positive")).mean().item()
    away = {name: (y - context.prediction).abs().mean().item() for name, y in found.items()}
    return away | {"positive − negative": gap}


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


@dataclass(frozen=True)
class Faithfulness:
    """Measures of several orders over the same queries and masks."""

    scores: dict[str, dict[str, np.ndarray]]
    """By order (methods, and the controls GRADIENT and RANDOM), measure: (Q,)."""
    survival: dict[str, np.ndarray]
    """By method: rank correlation (Q,) of its map's sizes with that of shuffled weights."""

    def mean(self, order: str, measure: str = "deletion") -> tuple[float, float, float]:
        """Mean over queries, with its 95% bootstrap interval."""
        return _mean(self.scores[order][measure])

    def beats(
        self, order: str, control: str, measure: str = "deletion"
    ) -> tuple[float, float, float]:
        """Mean advantage over a control on the same queries, positive where better."""
        sign = 1 if LARGER_IS_BETTER[measure] else -1
        pairs = self.scores[order][measure], self.scores[control][measure]
        return _mean(sign * (pairs[0] - pairs[1]))

    def table(self) -> Table:
        """A row an order, the best deletion first."""
        order = sorted(self.scores, key=lambda name: -self.mean(name)[0])
        rows = []
        for name in order:
            cells = [interval(self.mean(name, measure)) for measure in LARGER_IS_BETTER]
            gains = [
                "" if name == control else interval(self.beats(name, control), sign=True)
                for control in (RANDOM, GRADIENT)
            ]
            survives = self.survival.get(name)
            kept = "" if survives is None else f"{np.nanmean(survives):+.2f}"
            rows.append([name, *cells, *gains, kept])
        marks = {True: "↑", False: "↓"}
        columns = [f"{name} {marks[up]}" for name, up in LARGER_IS_BETTER.items()]
        count = len(next(iter(self.scores.values()))["deletion"])
        return Table(
            f"Faithfulness over {count} queries",
            [
                "order",
                *columns,
                "deletion beats random by",
                "beats plain gradient by",
                "map kept under shuffled weights",
            ],
            rows,
        )


def faithfulness(
    probes: Sequence[AttributionProbe], contexts: Sequence[Context], seed: int = 0
) -> Faithfulness:
    """All measures of each probe's maps, beside the plain gradient and random orders.

    `survival` explains a policy of shuffled weights: a map that stays is none of the policy's.
    """
    maps: dict[str, Map] = {probe.name: _map_of(probe) for probe in probes}
    maps[GRADIENT] = lambda context: context.gradient(context.features[None])[0]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in (*maps, RANDOM)}
    survival: dict[str, list[float]] = {probe.name: [] for probe in probes}
    other = shuffled_weights(contexts[0].policy, seed)
    for number, context in enumerate(contexts):
        base = baseline("episodes", context)[:DRAWS]
        found = {name: make(context) for name, make in maps.items()}
        for name, values in found.items():
            scores[name].append(measures(context, values, base, seed + number))
        scores[RANDOM].append(_random(context, base, seed + number))
        for name in survival:
            there = maps[name](context.to_policy(other))
            survival[name].append(rank_correlation(found[name].abs(), there.abs()))
    return Faithfulness(
        {
            name: {m: np.array([row[m] for row in rows]) for m in LARGER_IS_BETTER}
            for name, rows in scores.items()
        },
        {name: np.array(values) for name, values in survival.items()},
    )


def _map_of(probe: AttributionProbe) -> Map:
    return lambda context: probe.attribute(context).over_features(context.features.shape[1])


def _random(context: Context, base: Tensor, seed: int) -> dict[str, float]:
    """Mean of several random orders."""
    generator = torch.Generator().manual_seed(seed)
    shape = context.features.shape
    maps = [torch.randn(shape, generator=generator).to(base) for _ in range(RANDOM_ORDERS)]
    rows = [measures(context, values, base, seed) for values in maps]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@torch.no_grad()
def shuffled_weights(policy: Policy, seed: int) -> Policy:
    """A copy with each parameter's numbers in another order (after Adebayo et al., 1810.03292)."""
    generator, copied = torch.Generator().manual_seed(seed), copy.deepcopy(policy)
    for parameter in copied.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copied


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of all numbers of two tensors; nan where one is constant."""
    ranks = torch.stack([_ranks(x.flatten().double()) for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(x: Tensor) -> Tensor:
    """Ties share the mean of their ranks."""
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    return (ends - (count - 1) / 2)[place]


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    return (float(values.mean()), *bootstrap_interval(values))


def interval(values: tuple[float, ...], sign: bool = False, digits: int = 3) -> str:
    """A mean and its interval: 0.120 [0.101, 0.140]."""
    mean, low, high = (f"{value:{'+' if sign else ''}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"
