"""A policy as a polynomial: what stands in for each of its functions, and how well.

    f_i(x) ≈ p_i(x) = Σ_n c_n T_n(t),   t = (2 x − a_i − b_i) / (b_i − a_i),   x in [a_i, b_i]

T_n are Chebyshev's polynomials, p_i meets f_i at their nodes. The f_i are activations, 1 / √x of
norms and 1 / x of power-softmax; all else is sums and products. So the policy is a polynomial in
returns-to-go, observations and previous actions, and can run on encrypted ones: Zimerman et al.,
"Converting Transformers to Polynomial Form", arXiv 2311.08610, and arXiv 2410.09457.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial.chebyshev import Chebyshev
from torch import Tensor

from decision_s4.agents.actor import Actor
from decision_s4.agents.backbones import State, ops
from decision_s4.agents.encoders import OneHot, Standardised
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.policy import Policy
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError
from decision_s4.envs.steps import Batch
from decision_s4.envs.timestep import TimeStep

MARGIN = 0.25  # by which intervals are wider, on each side, than the range they were measured on
POSITIVE = ("rsqrt", "reciprocal")


@dataclass
class Site:
    """A function of a policy, and where its arguments lay."""

    asked: ops.Asked
    low: float = float("inf")
    high: float = float("-inf")

    def see(self, x: Tensor) -> None:
        """Widen the range to that of x."""
        if x.numel():
            low, high = x.aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    def interval(self) -> tuple[float, float]:
        """The range with a margin."""
        if self.asked.kind in POSITIVE:
            return self.low / (1 + MARGIN), self.high * (1 + MARGIN)
        margin = MARGIN * max(self.high - self.low, 1e-3)
        return self.low - margin, self.high + margin


class Polynomial:
    """Of one site: callable on tensors."""

    def __init__(self, site: Site, degree: int):
        self.asked, (self.low, self.high) = site.asked, site.interval()
        self.reached, self.worst = Site(site.asked), 0.0
        fitted = Chebyshev.interpolate(self._exact, degree, (self.low, self.high))
        self.coefficients = fitted.coef.tolist()

    def _exact(self, x: np.ndarray) -> np.ndarray:
        return ops.FUNCTIONS[self.asked.kind](torch.from_numpy(x)).numpy()

    def __call__(self, x: Tensor) -> Tensor:
        """p(x), by Clenshaw's recurrence."""
        t = (2 * x - (self.low + self.high)) / (self.high - self.low)
        first, *rest = self.coefficients
        one = two = torch.zeros_like(t)
        for c in reversed(rest):
            one, two = 2 * t * one - two + c, one
        return t * one - two + first

    def watched(self, x: Tensor) -> Tensor:
        """p(x), noting the range reached and the largest error."""
        y = self(x)
        if x.numel():
            self.reached.see(_finite(x))
            error = _finite(y - ops.FUNCTIONS[self.asked.kind](x)).abs().max().item()
            self.worst = max(self.worst, error)
        return y


def _finite(x: Tensor) -> Tensor:
    """x, with infinity for what is no number: no maximum may hide it."""
    return x.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))


class Polynomials:
    """Those of a policy, in the order in which it asks for functions: one after another."""

    def __init__(self, sites: Iterable[Site], degree: int):
        self.degree_each = degree
        self.parts = [Polynomial(site, degree) for site in sites]

    @property
    def degree(self) -> int:
        """Of the whole, in all its inputs together."""
        total = 1
        for part in self.parts:
            total *= part.asked.beside + part.asked.degree * self.degree_each
        return total

    @property
    def depth(self) -> int:
        """Products of two encrypted numbers in a row; those by weights are not counted."""
        return sum(map(self._levels, self.parts))

    def _levels(self, part: Polynomial) -> int:
        own = _levels(part.asked.degree) + _levels(self.degree_each)
        return max(own, _levels(part.asked.beside)) + 1 if part.asked.beside else own

    @contextmanager
    def standing_in(self, watched: bool = False) -> Iterator[None]:
        """Within it, one forward or step of the policy and its head has them for functions."""
        parts = iter(self.parts)

        def instead(asked: ops.Asked, x: Tensor) -> Tensor:
            part = next(parts)
            return part.watched(x) if watched else part(x)

        with ops.functions(instead):
            yield


def _levels(degree: int) -> int:
    """⌈log₂ degree⌉: depth at which a polynomial of one encrypted number can be evaluated."""
    return max(0, degree - 1).bit_length()


def check_polynomial(policy: Any, flag: str) -> SequencePolicy:
    """The policy. Raises UserError, naming `flag`, for one with anything else in it."""
    if type(policy) is not SequencePolicy:
        raise UserError(f"{flag} needs a policy that reads one token a step and its state alone")
    if not all(block.mixer.marked for block in policy.backbone.blocks):
        raise UserError(
            f"{flag} cannot serve the backbone {policy.options.backbone}; train with "
            "--backbone s4d, s4, power-softmax, mlp or a hybrid of them"
        )
    if not isinstance(policy.observation_features, Standardised | OneHot):
        raise UserError(f"{flag} needs observations of numbers, not {policy.observation_space}")
    return policy


def measure(policy: Policy, batches: Iterable[Batch]) -> list[Site]:
    """The ranges of all functions of a policy over batches without padding."""
    sites: list[Site] = []
    for batch in batches:
        numbers = itertools.count()

        def see(asked: ops.Asked, x: Tensor, numbers: Iterator[int] = numbers) -> Tensor:
            number = next(numbers)
            if number == len(sites):
                sites.append(Site(asked))
            sites[number].see(x)
            return ops.FUNCTIONS[asked.kind](x)

        with ops.functions(see):
            actions_of(policy, batch)
    return sites


@torch.no_grad()
def actions_of(policy: Policy, batch: Batch) -> Tensor:
    """(B, T, …): the policy's, where the logged ones had been taken before."""
    return policy.head.act(policy(batch)[0])


def differences(policy: Policy, polynomials: Polynomials, batches: Iterable[Batch]) -> Tensor:
    """(steps,): how far an action is off where polynomials stand in, at each step.

    Of its dimensions the largest, in units of half the action's range; 0 or 1 of a choice.
    """
    found = []
    for batch in batches:
        exact = actions_of(policy, batch)
        with polynomials.standing_in(watched=True):
            difference = (actions_of(policy, batch) - exact).abs()
        if isinstance(policy.head, BoxHead):
            difference = difference.flatten(2) / policy.head.reach
        found.append(_finite(difference.float()).flatten(0, 1).flatten(1).amax(1))
    return torch.cat(found)


class PolynomialAgent:
    """Acts as the policy would if its functions were polynomials."""

    def __init__(self, policy: Policy, polynomials: Polynomials):
        self.actor, self.polynomials = Actor(policy), polynomials

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode's first step."""
        return self.actor.initial_state(batch_size)

    def act(self, step: TimeStep, state: State, deterministic: bool = True) -> tuple[Tensor, State]:
        """One step of all rows: action (B, …) in the action space's units, and the new state."""
        with self.polynomials.standing_in():
            return self.actor.act(step, state, deterministic)
