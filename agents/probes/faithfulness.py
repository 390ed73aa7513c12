"""Is a map true? Inputs are taken away in its order (see taking_away.py), beside other orders.

Shapes: Q queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from decision_s4.agents.probes.base import AttributionProbe, Table
from decision_s4.agents.probes.baselines import baseline
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.sanity import rank_correlation, shuffled_weights
from decision_s4.agents.probes.taking_away import LARGER_IS_BETTER, deletion, measures
from decision_s4.envs.statistics import bootstrap_interval

DRAWS = 2
RANDOM_ORDERS = 2
GRADIENT, RANDOM = "plain gradient", "random order"
SHUFFLED, KEPT, SIGNED, FLOOR = "shuffled", "kept", "kept with signs", "floor"
"""Of a method's map under shuffled weights: its deletion, and rank correlations (see `Judge`)."""

Map = Callable[[Context], Tensor]
Scores = dict[str, dict[str, float]]
"""By order (methods, and the controls GRADIENT and RANDOM), by measure."""


class Judge:
    """Measures each probe's map of a query, beside the plain gradient and random orders.

    Each method also explains two networks of shuffled weights, drawn anew for each query:
    "shuffled" is the deletion, of the true policy's answer, in the order of the first one's map;
    "kept" and "kept with signs" are rank correlations of the map with that one, "floor" that of the
    two with each other. A map is the policy's own where it deletes more than "shuffled", and keeps
    no more than the floor.
    """

    def __init__(self, probes: Sequence[AttributionProbe]):
        self.maps: dict[str, Map] = {probe.name: _map_of(probe) for probe in probes}

    def scores(self, context: Context, seed: int, weights: bool = True) -> Scores:
        """All measures of one query; those of shuffled weights are nan without `weights`."""
        base = baseline("episodes", context)[:DRAWS]
        others = [
            context.to_policy(shuffled_weights(context.policy, 2 * seed + i))
            for i in range(2 if weights else 0)
        ]
        found = {}
        for name, make in self.maps.items():
            values, *there = (make(each) for each in (context, *others))
            found[name] = measures(context, values, base, seed)
            found[name] |= _compared(context, values, there, base, seed)
        gradient = context.gradient(context.features[None])[0]
        found[GRADIENT] = measures(context, gradient, base, seed)
        found[RANDOM] = _random(context, base, seed)
        return found


def _compared(
    context: Context, values: Tensor, shuffled: Sequence[Tensor], base: Tensor, seed: int
) -> dict[str, float]:
    """A map beside those of two networks of shuffled weights; nan where there are none."""
    if not shuffled:
        return dict.fromkeys((SHUFFLED, KEPT, SIGNED, FLOOR), float("nan"))
    first, second = shuffled
    return {
        SHUFFLED: deletion(context, first, base, seed),
        KEPT: rank_correlation(values.abs(), first.abs()),
        SIGNED: rank_correlation(values, first),
        FLOOR: rank_correlation(first.abs(), second.abs()),
    }


@dataclass(frozen=True)
class Faithfulness:
    """Measures of several orders over the same queries and masks."""

    MEASURES: ClassVar = (*LARGER_IS_BETTER, SHUFFLED, KEPT, SIGNED, FLOOR)

    scores: dict[str, dict[str, np.ndarray]]
    """By order (methods, and the controls GRADIENT and RANDOM), measure: (Q,)."""

    @staticmethod
    def over(queries: Sequence[Scores]) -> "Faithfulness":
        """That of several queries with the same orders."""
        return Faithfulness(
            {
                order: {name: np.array([each[order][name] for each in queries]) for name in row}
                for order, row in queries[0].items()
            }
        )

    @property
    def methods(self) -> list[str]:
        """All orders but the controls, the best deletion first."""
        names = [name for name in self.scores if name not in (GRADIENT, RANDOM)]
        return sorted(names, key=lambda name: -self.mean(name)[0])

    def mean(self, order: str, measure: str = "deletion") -> tuple[float, float, float]:
        """Mean over queries, with its 95% bootstrap interval; nan where no query has a number."""
        return _mean(self.scores[order][measure])

    def beats(
        self, order: str, control: str, measure: str = "deletion"
    ) -> tuple[float, float, float]:
        """Mean advantage over a control on the same queries, positive where better."""
        sign = 1 if LARGER_IS_BETTER[measure] else -1
        pairs = self.scores[order][measure], self.scores[control][measure]
        return _mean(sign * (pairs[0] - pairs[1]))

    def beats_shuffled(self, order: str) -> tuple[float, float, float]:
        """Mean advantage in deletion over the method's own map of shuffled weights."""
        return _mean(self.scores[order]["deletion"] - self.scores[order][SHUFFLED])

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
            rows.append([name, *gains, *cells])
        marks = {True: "↑", False: "↓"}
        columns = [f"{name} {marks[up]}" for name, up in LARGER_IS_BETTER.items()]
        count = len(next(iter(self.scores.values()))["deletion"])
        return Table(
            f"Faithfulness over {count} queries",
            ["order", "deletion beats random by", "beats plain gradient by", *columns],
            rows,
        )

    def weights_table(self) -> Table:
        """What the methods' maps of shuffled weights have in common with the true ones."""
        rows = [
            [
                name,
                interval(self.beats_shuffled(name), sign=True),
                *(interval(self.mean(name, measure), True, 2) for measure in (KEPT, SIGNED, FLOOR)),
            ]
            for name in self.methods
        ]
        columns = [
            "map",
            "deletion beats its own map of shuffled weights by",
            "rank correlation with that map",
            "with signs",
            "of two such maps",
        ]
        return Table("Are the maps the policy's own?", columns, rows)


def faithfulness(
    probes: Sequence[AttributionProbe],
    contexts: Sequence[Context],
    seed: int = 0,
    weights: bool = True,
) -> Faithfulness:
    """All measures over all queries; `weights`: also of shuffled ones, at thrice the cost."""
    judge = Judge(probes)
    return Faithfulness.over(
        [judge.scores(context, seed + i, weights) for i, context in enumerate(contexts)]
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


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return (float("nan"),) * 3
    return (float(values.mean()), *bootstrap_interval(values))


def interval(values: tuple[float, ...], sign: bool = False, digits: int = 3) -> str:
    """A mean and its interval: 0.120 [0.101, 0.140]; a dash for none."""
    if not np.isfinite(values[0]):
        return "–"
    rounded = [round(value, digits) + 0.0 for value in values]  # no "-0"
    mean, low, high = (f"{value:{'+' if sign else ''}.{digits}f}" for value in rounded)
    return f"{mean} [{low}, {high}]"
