"""Activation patching: through which layer and which past step another episode changes the answer.

A query's window is read as it was (clean) and with what another episode held at the same steps
(corrupt), from the same state. What one place held in the corrupt run is put into the clean one:

    share(place, steps) = Σ_q (ŷ − y)(y' − y) / Σ_q (y' − y)²

over queries q, of the clean answer y, the corrupt y' and the patched ŷ: 1 where all of the
difference passes (Zhang and Nanda, arXiv 2309.16042). Shapes: W steps, P places, G groups of steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Curves, Findings, PolicyProbe, Row, Table
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.gradients import time_blocks
from decision_s4.agents.probes.layer_probes import check_layers
from decision_s4.agents.probes.reading import residual_places, values_at
from decision_s4.agents.probes.relevance import estimated_effects
from decision_s4.agents.probes.subspace import subspace_table
from decision_s4.envs.task import Task

RECENT = 8
"""Steps that are patched one by one; earlier ones in blocks twice as long each."""


class Effects(NamedTuple):
    """Of one query, groups of steps from the newest back."""

    whole: float
    """y' − y."""
    patched: Tensor
    """(P, G) ŷ − y."""
    estimated: Tensor
    """(P, G) the same by relevance patching, from one backward pass."""
    lags: list[int]
    """(G,) steps from each group's newest to the answer."""


class Patching(PolicyProbe):
    """Of the residual stream before each layer and before the head, step by step."""

    name = "patching"
    question = "through which layer and which past step does another episode change the answer?"

    def check(self, policy: Policy) -> None:
        check_layers(self.name, policy)

    def examine(self, contexts: Sequence[Context], task: Task | None = None) -> Findings:
        """One run a place and group of steps of each query; then whether directions are real."""
        places = residual_places(contexts[0].policy)
        found = [effects(context, places) for context in contexts]
        lags = max((one.lags for one in found), key=len)
        shares = pooled_shares(found, len(lags))
        title = f"Share of another episode's answer that passes, {len(found)} queries"
        columns = ["place", "present step", *_spans(lags), "estimate correlates"]
        rows: list[Row] = [
            [place, *_by_span(row, lags), _correlation(found, i)]
            for i, (place, row) in enumerate(zip(places, shares, strict=True))
        ]
        lines = {place: row.tolist() for place, row in zip(places, shares, strict=True)}
        curves = Curves(f"Share that passes, in blocks from {RECENT} on", "steps back", lags, lines)
        note = (
            "1: all of the difference between two episodes passes there. The estimate is relevance "
            "patching: one backward pass instead of a run for each cell."
        )
        scalars = {f"patching/{p}": float(row[0]) for p, row in zip(places, shares, strict=True)}
        tables = [Table(title, columns, rows), subspace_table(contexts)]
        return Findings(self.name, tables, [curves], scalars, [note])


def effects(context: Context, places: Sequence[str]) -> Effects:
    """Of patching each place of a query with its value of the first other episode."""
    clean, corrupt = context.features[None], context.others[:1]
    there = values_at(lambda: context.answer(corrupt), places)
    steps = len(context.features)
    groups = list(time_blocks(steps, RECENT))
    guess = estimated_effects(
        lambda: context.answer(clean), lambda: context.answer(corrupt), places
    )
    with torch.no_grad():
        whole = context.answer(corrupt).item() - context.prediction
    return Effects(
        whole,
        torch.tensor([[_patched(context, p, there[p], group) for group in groups] for p in places]),
        torch.tensor([[_over(guess[p][0], group, steps) for group in groups] for p in places]),
        [steps - end for _, end in groups],
    )


@torch.no_grad()
def _patched(context: Context, place: str, there: Tensor, group: tuple[int, int]) -> float:
    (first, end), plain = group, context.prediction

    def patch(x: Tensor) -> Tensor:
        here, other = (y.unflatten(1, (len(context.features), -1)) for y in (x, there))
        parts = here[:, :first], other[:, first:end], here[:, end:]
        return torch.cat(parts, 1).flatten(1, 2)  # a step may have several tokens

    with ops.taps({place: patch}):
        return context.answer(context.features[None]).item() - plain


def _over(tokens: Tensor, group: tuple[int, int], steps: int) -> float:
    return tokens.view(steps, -1)[slice(*group)].sum().item()


def pooled_shares(found: Sequence[Effects], groups: int) -> Tensor:
    """(P, G): the slope of patched on whole changes over the queries that have the group; nan where
    other episodes change nothing."""
    over, under = torch.zeros(len(found[0].patched), groups), torch.zeros(groups)
    for one in found:
        over[:, : len(one.lags)] += one.whole * one.patched
        under[: len(one.lags)] += one.whole**2
    return over / under


def _spans(lags: Sequence[int]) -> list[str]:
    return [f"1 to {RECENT - 1} back", f"{RECENT} and more"][: 1 + (lags[-1] >= RECENT)]


def _by_span(shares: Tensor, lags: Sequence[int]) -> list[float]:
    recent = sum(1 for lag in lags if lag < RECENT)
    spans = [shares[:1], shares[1:recent], shares[recent:]]
    return [float(span.sum()) for span in spans[: 2 + (recent < len(lags))]]


def _correlation(found: Sequence[Effects], place: int) -> float:
    """Of estimated and true effects, over queries and groups; nan where there are none."""
    pairs = [
        torch.cat([getattr(one, name)[place] for one in found]) for name in ("patched", "estimated")
    ]
    return torch.corrcoef(torch.stack(pairs))[0, 1].item()
