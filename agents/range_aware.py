"""Training that keeps the arguments of a policy's functions within ranges, for polynomials to come.

    minimise  loss + w / n Σ_i mean_t Σ_c e²,   e = max(0, |x| − r) of activations,
                                               max(0, |log x| − log r) of 1 / √x and 1 / x

over the n functions that the policy asks for, steps t and channels c. A polynomial knows its
function within an interval alone: the narrower that is, the lower a degree suffices (range-aware
training, Zimerman et al., arXiv 2311.08610).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decision_s4.agents.backbones import ops
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.distributed import ALONE, World
from decision_s4.agents.policy import Policy
from decision_s4.agents.polynomial import POSITIVE, check_polynomial


@dataclass(frozen=True)
class RangeOptions:
    """Whether and where to keep the arguments of activations, norms and quotients."""

    range_weight: float = 0.0
    """Weight of the penalty on arguments out of range, for evaluate.py --polynomial; 0 for none."""
    range_limit: float = 4.0
    """r: activations are to read [-r, r], norms' roots and quotients [1 / r, r]."""


class RangeAwareLearner(DecisionLearner):
    """A DecisionLearner with the penalty. Raises UserError for a policy that asks `ops` for less
    than all its functions."""

    def __init__(
        self,
        policy: Policy,
        options: OptimiserOptions,
        total_steps: int,
        ranges: RangeOptions,
        world: World = ALONE,
    ):
        check_polynomial(policy, "--range-weight")
        super().__init__(policy, options, total_steps, world)
        self.ranges = ranges

    def loss(self, batch: Any) -> Tensor:
        """The imitation's loss and the penalty."""
        found: list[Tensor] = []

        def see(asked: ops.Asked, x: Tensor) -> Tensor:
            found.append(excess(asked, x, self.ranges.range_limit))
            return ops.FUNCTIONS[asked.kind](x)

        with ops.functions(see):
            imitation = super().loss(batch)
        return imitation + self.ranges.range_weight * torch.stack(found).mean()


def excess(asked: ops.Asked, x: Tensor, limit: float) -> Tensor:
    """Mean over steps of the sum over channels of the squared distance to the range."""
    positive = asked.kind in POSITIVE
    beyond = x.log().abs() - math.log(limit) if positive else x.abs() - limit
    return beyond.clamp(min=0).square().sum(-1).mean()
