"""The probe that says how far back a policy looks: see horizon.py.

Shapes: W steps of a window, L lags.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decision_s4.agents.policy import Policy
from decision_s4.agents.probes.attention import operators
from decision_s4.agents.probes.base import Curves, Findings, PolicyProbe, Table
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.horizon import EPSILON, LayerHorizon, gradient_field, layer_horizon
from decision_s4.agents.probes.layer_probes import check_layers
from decision_s4.envs.make import step_seconds
from decision_s4.envs.task import Task

COLUMNS = (
    "layer",
    "median time constant",
    "longest time constant",
    f"lags that hold {1 - EPSILON:.0%}",
    "mean distance",
)


class Horizon(PolicyProbe):
    """How far back each layer looks, and the policy as a whole by its gradient."""

    name = "horizon"
    question = "how far back does the policy look?"
    cheap = True

    def check(self, policy: Policy) -> None:
        check_layers(self.name, policy)

    def examine(self, contexts: Sequence[Context], task: Task | None = None) -> Findings:
        """Over the contexts' last steps."""
        layers = [_horizons(context) for context in contexts]
        each = [_mean(found) for found in zip(*layers, strict=True)]
        field = _field(contexts)
        longest = max(len(context.features) for context in contexts)
        steps = max(context.step for context in contexts) + 1
        tables = [Table("How far back the layers look, in tokens", COLUMNS, _table(each))]
        seconds = step_seconds(task.env_id, **task.env_kwargs) if task else None
        if seconds is not None:
            title = f"The same in seconds, of {seconds:g} a step"
            token = seconds / tokens_of_a_step(contexts[0].policy)
            tables.append(Table(title, COLUMNS, _table(each, token)))
        return Findings(
            self.name,
            tables,
            (_curves(each), _field_curve(field)),
            _scalars(each) | {"horizon/gradient_mean_distance": _distance(field)},
            (
                f"episodes of {steps} steps or more, read in windows of {longest}: "
                "no map sees further than its window; time constants do",
                *_beside_training(each, tokens_of_a_step(contexts[0].policy), steps, task),
            ),
        )


def _beside_training(
    each: Sequence["_Mean"], tokens: int, steps: int, task: Task | None
) -> list[str]:
    """What goes on for longer than any stretch of the training, and so was never learned there."""
    learned = task.learned_steps if task else None
    if learned is None:
        return []
    notes = [f"trained on stretches of {learned} steps at most"]
    far = [str(i) for i, one in enumerate(each) if one.longest > learned * tokens]
    if far:
        notes.append(
            f"the longest time constant of layer {', '.join(far)} is longer than that: what it "
            "holds for longer is extrapolated, not learned"
        )
    if steps > learned:
        notes.append(f"step {steps - 1} lies past that: what is said about it is extrapolated")
    return notes


def _horizons(context: Context) -> list[LayerHorizon]:
    ops = operators(context.policy, context.batch, state=context.state)
    return [layer_horizon(op) for op in ops]


@dataclass(frozen=True)
class _Mean:
    median: float
    longest: float
    lags: float
    distance: float
    profile: Tensor


def _mean(found: Sequence[LayerHorizon]) -> _Mean:
    """Over contexts, whose windows may differ in length."""
    constants = [one.time_constants for one in found if one.time_constants is not None]
    nan, count = float("nan"), len(found)
    return _Mean(
        sum(float(one.median()) for one in constants) / count if constants else nan,
        max(float(one[-1]) for one in constants) if constants else nan,
        sum(one.epsilon_horizon for one in found) / count,
        sum(one.mean_distance for one in found) / count,
        _padded_mean([one.profile for one in found]),
    )


def _padded_mean(profiles: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(profiles), batch_first=True).mean(0)


def tokens_of_a_step(policy: Policy) -> int:
    """How many tokens the backbone reads of each step."""
    return 1 + max(part.token for part in policy.token_map(1))


def _table(each: Sequence[_Mean], unit: float = 1.0) -> list[list[str | float]]:
    """A row a layer, a token being so many units."""
    return [
        [str(i), *(unit * x for x in (one.median, one.longest, one.lags, one.distance))]
        for i, one in enumerate(each)
    ]


def _curves(each: Sequence[_Mean]) -> Curves:
    lines = {f"layer {i}": one.profile.tolist() for i, one in enumerate(each)}
    lags = range(max(len(one.profile) for one in each))
    return Curves("Share of each layer's attention by lag", "tokens back", list(lags), lines)


def _field(contexts: Sequence[Context]) -> Tensor:
    """(W,) mean effective receptive field by lag, summing to 1."""
    fields = [gradient_field(c.policy, c.batch, c.read, c.state)[0].flip(0) for c in contexts]
    mean = _padded_mean(fields)
    return mean / mean.sum().clamp(min=torch.finfo(mean.dtype).tiny)


def _field_curve(field: Tensor) -> Curves:
    lines = {"Σ |∂answer/∂input|": field.tolist()}
    return Curves("Effective receptive field", "steps back", list(range(len(field))), lines)


def _distance(field: Tensor) -> float:
    return float((field * torch.arange(len(field), device=field.device)).sum())


def _scalars(each: Sequence[_Mean]) -> dict[str, float]:
    found = {}
    for i, one in enumerate(each):
        found[f"horizon/layer_{i}_lags"] = one.lags
        found[f"horizon/layer_{i}_mean_distance"] = one.distance
    return found
