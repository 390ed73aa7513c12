"""Maps as matplotlib figures, for TensorBoard. Shapes: T tokens, F features of a step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from decision_s4.agents.probes.attention import mean_map, operators
from decision_s4.agents.probes.base import Attribution
from decision_s4.agents.probes.context import Context
from decision_s4.agents.probes.layer_probes import HiddenAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def map_figure(found: Attribution, names: Sequence[str], asked: str) -> Any:
    """A map with symmetric limits, and beside it each feature's sum over the steps shown, if it
    tells features apart.

    Args:
        names: (F,) of the features.
        asked: what was explained, as a person reads it.
    """
    from matplotlib.figure import Figure

    whole = found.values.shape[1] != len(names)  # the method tells steps apart alone
    values, names = found.values.cpu().numpy(), ["all inputs"] if whole else names
    limit = float(np.abs(values).max()) or 1.0
    figure = Figure(figsize=(11, 1.4 + 0.24 * len(names)), layout="constrained")
    axis, *sums = figure.subplots(
        1, 1 if whole else 2, squeeze=False, sharey=True, width_ratios=(4, 1)[: 2 - whole]
    )[0]
    image = axis.imshow(
        values.T,
        cmap="Blues" if whole else "RdBu_r",
        vmin=0 if whole else -limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=(found.first - 0.5, found.step + 0.5, len(names) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="step", title=f"{found.method}: {asked} at step {found.step}")
    figure.colorbar(image, ax=axis, label="weight" if whole else "relevance")
    for beside in sums:
        _stems(beside, values.sum(0))
    return figure


def _stems(axis: "Axes", sums: np.ndarray) -> None:
    places = np.arange(len(sums))
    axis.hlines(places, 0, sums, color="#0f6e84", linewidth=1.5)
    axis.plot(sums, places, "o", color="#0f6e84", markersize=4)
    axis.axvline(0, color="#98a2b3", linewidth=0.8)
    axis.tick_params(labelleft=False)
    axis.set(xlabel="sum over steps")


@torch.no_grad()
def layers_figure(probe: HiddenAttention, context: Context) -> Any:
    """(T, T) mean |M| of each layer over a query's window, colours by the square root.

    Of a policy of several tokens a step these stand modality by modality, in a grid.
    """
    from matplotlib.figure import Figure

    layers = operators(context.policy, context.batch, probe.part, context.state)
    parts = context.policy.token_map(1)
    tokens = 1 + max(part.token for part in parts)
    figure = Figure(figsize=(4.2 * len(layers), 4.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(layers), squeeze=False)[0])
    for number, (axis, op) in enumerate(zip(axes, layers, strict=True)):
        weights = mean_map(op)[0].cpu().numpy()
        order = np.arange(len(weights)).reshape(-1, tokens).T.flatten()  # by modality, then step
        axis.imshow(weights[np.ix_(order, order)] ** 0.5, cmap="Blues", vmin=0)
        axis.set(title=f"layer {number}: largest weight {weights.max():.2g}")
        _label(axis, context, tokens, [part.modality.replace("_", " ") for part in parts])
    return figure


def _label(axis: "Axes", context: Context, tokens: int, names: list[str]) -> None:
    """Steps of one token each by their numbers; several tokens by what they are."""
    steps = len(context.features)
    if tokens == 1:
        marks = np.unique(np.linspace(0, steps - 1, 5).round().astype(int))
        labels = [str(context.first + mark) for mark in marks]
        axis.set(xlabel="step that is read", ylabel="step that reads")
    else:
        marks, labels = (np.arange(tokens) + 0.5) * steps - 0.5, names
        for edge in range(1, tokens):
            axis.axvline(edge * steps - 0.5, color="#98a2b3", linewidth=0.8)
            axis.axhline(edge * steps - 0.5, color="#98a2b3", linewidth=0.8)
    axis.set_xticks(marks, labels, fontsize=8)
    axis.set_yticks(marks, labels, fontsize=8, rotation=90 if tokens > 1 else 0, va="center")
