"""A sparse autoencoder on what a policy holds in mind, and what is lost where it speaks for it.

The reconstruction is put in the activation's place at every step of the loop: later layers, and
what they remember, are made of it. Beside it the mean activation, which tells nothing.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.base import Findings, PolicyProbe, Row, Table
from decision_s4.agents.probes.closed_loop import tapped_returns
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.layer_probes import check_layers
from decision_s4.agents.probes.linear import recordings_of
from decision_s4.agents.probes.reading import residual_places, values_at
from decision_s4.agents.probes.recordings import Recording
from decision_s4.agents.probes.sparse import (
    ACTIVE,
    SparseAutoencoder,
    explained_variance,
    fit,
    principal_reconstruction,
)
from decision_s4.envs.task import Task

LEAST_EPISODES = 2
COLUMNS = (
    "place",
    "explained variance",
    f"by {ACTIVE} principal components",
    "atoms in use at a step (L0)",
    "dead atoms",
)


class SparseAutoencoderProbe(PolicyProbe):
    """Of the residual stream after the first layer on, and of what the head reads."""

    name = "sae"
    question = "of how few directions at a time is what the policy holds in mind made up?"

    def check(self, policy: Policy) -> None:
        check_layers(self.name, policy)

    def examine(self, contexts: Sequence[Context], task: Task | None = None) -> Findings:
        """Every second episode to fit, the others to judge; then the loop, if there is a task."""
        policy, recordings = contexts[0].policy, recordings_of(contexts)
        if len(recordings) < LEAST_EPISODES:
            note = f"{len(recordings)} episode does not suffice; {LEAST_EPISODES} do"
            return Findings(self.name, notes=[note])
        rows: list[Row] = []
        scalars: dict[str, float] = {}
        splices: dict[str, dict[str, ops.Handler]] = {"nothing": {}}
        for place in residual_places(policy)[1:]:
            parts = [_activations(policy, recordings[first::2], place) for first in (0, 1)]
            model = fit(parts[0])
            figures = _figures(model, *parts)
            rows.append([place, *figures])
            scalars[f"sae/{place}/explained_variance"] = figures[0]
            splices[f"{place}: reconstruction"] = {place: model}
            splices[f"{place}: mean"] = {place: _constant(model.mean)}
        count = f"{len(model.decoder)} atoms, {ACTIVE} at most at a step"
        tables = [Table(f"Sparse autoencoders of {count}; judged on other episodes", COLUMNS, rows)]
        if task is not None:
            tables.append(tapped_returns(policy, task, splices))
        return Findings(self.name, tables, scalars=scalars)


def _activations(policy: Policy, recordings: Sequence[Recording], place: str) -> Tensor:
    """(S, D), tokens of all episodes."""
    batches = (recording.batch(0, recording.steps) for recording in recordings)
    runs = [values_at(partial(policy, batch), [place])[place][0] for batch in batches]
    return torch.cat(runs).float()


def _figures(model: SparseAutoencoder, fitted: Tensor, judged: Tensor) -> list[float]:
    codes = model.codes(judged)
    used = codes > 0
    return [
        explained_variance(judged, model.decoded(codes)),
        explained_variance(judged, principal_reconstruction(fitted, judged, ACTIVE)),
        used.sum(-1).double().mean().item(),
        (~used.any(0)).double().mean().item(),
    ]


def _constant(mean: Tensor) -> ops.Handler:
    return lambda x: mean.to(x.dtype).expand_as(x)
