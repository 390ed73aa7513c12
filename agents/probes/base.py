"""The contract of every probe: what it is asked, what it answers, and the registry of names.

Shapes: B rows, T steps of the context, F input features of a step (return-to-go, observation,
previous action, in the order of MODALITIES), D model width.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor

from decision_s4.agents.heads import BoxHead, DiscreteHead
from decision_s4.agents.policy import Policy
from decision_s4.envs.errors import UserError, nearest
from decision_s4.envs.task import Task

if TYPE_CHECKING:
    from decision_s4.agents.probes.context import Context


@dataclass(frozen=True)
class Target:
    """One number that a policy's features at one step mean: what is explained."""

    dimension: int
    """Of the flat action, or of the logits."""
    kind: str = "action"
    """action (in the action space's units), logit or log-probability."""

    @property
    def name(self) -> str:
        """As a person reads it: action[1]."""
        return f"{self.kind}[{self.dimension}]"

    def read(self, policy: Policy, features: Tensor) -> Tensor:
        """Features (…, D) of one step a row -> (…)."""
        head = policy.head
        if self.kind == "action":
            return head.act(features).flatten(features.ndim - 1)[..., self.dimension]
        logits = head.linear(features)
        if self.kind == "log-probability":
            assert isinstance(head, DiscreteHead), "see `check`"
            logits = torch.cat([x.log_softmax(-1) for x in logits.split(head.counts, -1)], -1)
        return logits[..., self.dimension]

    def check(self, policy: Policy) -> None:
        """Raise UserError where the policy's head has no such number."""
        kinds = {BoxHead: {"action"}, DiscreteHead: {"logit", "log-probability"}}
        known = next((kinds[k] for k in kinds if isinstance(policy.head, k)), set())
        if self.kind not in known:
            raise UserError(
                f"target '{self.kind}' is none of action space {policy.action_space}"
                f"{nearest(self.kind, known)}"
            )
        width = policy.head.linear.out_features
        if not 0 <= self.dimension < width:
            raise UserError(f"target {self.name} is not there; dimensions are 0 to {width - 1}")


def targets_of(policy: Policy) -> list[Target]:
    """Every action dimension, or every logit."""
    kind = "action" if isinstance(policy.head, BoxHead) else "logit"
    return [Target(i, kind) for i in range(policy.head.linear.out_features)]


@dataclass(frozen=True)
class Attribution:
    """Which inputs made one number: a signed map over steps and features."""

    method: str
    target: str
    step: int
    """Number of the step in its episode at which the policy answered."""
    first: int
    """Number of the step that the map begins with."""
    values: Tensor
    """(T, F) relevance; (T, 1) of a method that tells steps apart but no features."""
    prediction: float
    """The number explained."""
    bias: float | None = None
    """What no input gets (biases, the baseline's answer): values and it add up to the prediction.
    None for a method that makes no such claim."""
    baseline: str | None = None
    """What "absent" means; None for a method that compares with nothing."""
    notes: tuple[str, ...] = ()

    @property
    def conservation_gap(self) -> float | None:
        """What biases keep, as a share of all that was moved, in [0, 1]; None for a method that
        compares with a baseline, or makes no claim."""
        if self.bias is None or self.baseline is not None:
            return None
        moved = self.values.abs().sum().item() + abs(self.bias)
        return abs(self.bias) / moved if moved else 0.0

    def over_features(self, width: int) -> Tensor:
        """(T, width): a map of steps alone spreads each evenly."""
        if self.values.shape[1] == width:
            return self.values
        return self.values.expand(-1, width) / width


Row: TypeAlias = Sequence[str | float]


@dataclass(frozen=True)
class Table:
    """Rows for a person."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Curves:
    """Lines over one axis."""

    title: str
    x_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Findings:
    """What a probe of the policy as a whole found, in a form that any report can show."""

    method: str
    tables: Sequence[Table] = ()
    curves: Sequence[Curves] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    """For TensorBoard, by name below `probe/`."""
    notes: Sequence[str] = ()


class Probe(ABC):
    """One question to a policy."""

    name: ClassVar[str]
    question: ClassVar[str]
    """What it answers, in a line."""
    cheap: ClassVar[bool] = False
    """Fast enough for every evaluation of a training."""

    def check(self, policy: Policy) -> None:  # noqa: B027  most serve every policy
        """Raise UserError, with the probe's name, where it cannot serve the policy."""


class AttributionProbe(Probe):
    """Explains one answer of the policy."""

    @abstractmethod
    def attribute(self, context: "Context") -> Attribution:
        """The map of one query."""


class PolicyProbe(Probe):
    """Examines the policy as a whole, over the contexts of several queries."""

    @abstractmethod
    def examine(self, contexts: "Sequence[Context]", task: Task | None = None) -> Findings:
        """What it found; without a `task` to play, by the recorded episodes alone."""


PROBES: dict[str, str] = {
    "gradient-x-input": "gradients:GradientTimesInput",
    "integrated-gradients": "gradients:IntegratedGradients",
    "smoothgrad": "gradients:SmoothGrad",
    "occlusion": "gradients:Occlusion",
    "hidden-attention": "layer_probes:HiddenAttention",
    "implicit-attention": "layer_probes:ImplicitAttention",
    "rollout": "layer_probes:Rollout",
    "gradient-rollout": "layer_probes:GradientRollout",
    "tensorlens": "layer_probes:TensorLens",
    "lrp": "layer_probes:LRP",
    "attnlrp": "layer_probes:AttnLRP",
    "lrp-selection": "layer_probes:SelectionLRP",
    "horizon": "horizon_probe:Horizon",
    "linear-probe": "linear:LinearProbe",
    "steering": "steering:Steering",
    "patching": "patching:Patching",
    "sae": "sae:SparseAutoencoderProbe",
}
"""module:class below this package, by the name a person gives; imported when asked for."""


def make_probe(name: str) -> Probe:
    """The probe called `name`. Raises UserError for an unknown one, naming the nearest."""
    if name not in PROBES:
        raise UserError(f"probe '{name}' is unknown{nearest(name, PROBES, most=20)}")
    module, _, kind = PROBES[name].partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), kind)()


def make_probes(names: Sequence[str | Probe], policy: Policy) -> list[Probe]:
    """Probes by name or made already, each able to serve the policy. Raises UserError before any
    work."""
    probes = [make_probe(x) if isinstance(x, str) else x for x in dict.fromkeys(names)]
    for probe in probes:
        probe.check(policy)
    return probes
