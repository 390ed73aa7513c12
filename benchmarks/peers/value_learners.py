"""E value learners side by side: stacked weights, transitions for each, their optimisers.

Losses are those of agents/td3_bc.py and agents/iql.py themselves, mapped over the stacked weights
of E learners with the same spaces and settings; nothing couples them. Shapes: E runs, B
transitions.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from decision_s4.agents.iql import IQLLearner
from decision_s4.agents.td3_bc import TD3BCLearner
from decision_s4.agents.value_learner import ValueLearner
from decision_s4.envs.transitions import TransitionBatches, Transitions

Losses = Callable[[Transitions], dict[str, Tensor]]
"""By the network that each trains."""


class Tables:
    """All transitions of some datasets on one device, and random ones for each run."""

    def __init__(self, sets: list[TransitionBatches], runs: list[int], device: str):
        """`runs` (E,): the number of each run's set."""
        parts = [vars(each.transitions(*each.usable())) for each in sets]
        counts = torch.tensor([len(part["reward"]) for part in parts])
        self.data = {n: torch.cat([part[n] for part in parts]).to(device) for n in parts[0]}
        self.count = counts[runs, None].to(device)
        self.first = (counts.cumsum(0) - counts)[runs, None].to(device)

    def draw(self, size: int) -> dict[str, Tensor]:
        """(E, B, …): each of a run's set with the same probability."""
        shape = (len(self.first), size)
        place = torch.rand(shape, dtype=torch.float64, device=self.first.device)
        return self.at((place * self.count).long() + self.first)

    def at(self, number: Tensor) -> dict[str, Tensor]:
        """(E, B, …) the transitions numbered so, as the fields of Transitions."""
        return {name: each[number] for name, each in self.data.items()}


class Asked(nn.Module):
    """A learner's networks as one module, which answers with losses."""

    def __init__(self, learner: ValueLearner):
        super().__init__()
        parts = {n: part for n, part in learner.parts.items() if isinstance(part, nn.Module)}
        self.parts = nn.ModuleDict(parts)

    def forward(self, losses: Losses, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses(Transitions(**batch))


class Together:
    """E learners with stacked weights; a subclass says what an update is."""

    trained: tuple[str, ...] = ("policy", "critic")
    first: Any
    """One of the learners."""

    def __init__(self, learners: Sequence[ValueLearner], device: str):
        states = [Asked(learner).state_dict() for learner in learners]
        self.weights = {n: torch.stack([s[n] for s in states]).to(device) for n in states[0]}
        self.first, self.asked = learners[0], Asked(learners[0]).to(device)
        self.networks = {name: self._network(name) for name in self.asked.parts}
        self.optimisers = {name: self._adam(self.networks[name]) for name in self.trained}

    def update(self, batch: dict[str, Tensor]) -> None:
        """One update of all by (E, B, …) transitions."""
        raise NotImplementedError

    def descend(self, losses: Losses, batch: dict[str, Tensor]) -> None:
        """A step of each network that `losses` names."""
        found = torch.vmap(partial(self._losses, losses), randomness="different")
        totals = {name: each.sum() for name, each in found(self.weights, batch).items()}
        for name, total in totals.items():
            weights = self.networks[name]
            gradients = torch.autograd.grad(total, weights, retain_graph=len(totals) > 1)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.contiguous()  # a fused Adam reads it as it lies
        for name in totals:
            self.optimisers[name].step()

    @torch.no_grad()
    def follow(self, *names: str) -> None:
        """Targets take over their share."""
        for name in names:
            rate = self.first.options.target_rate
            torch._foreach_lerp_(self.networks[f"target_{name}"], self.networks[name], rate)

    def policies(self) -> Iterable[dict[str, Tensor]]:
        """The state of each run's policy, on the CPU."""
        begin = "parts.policy."
        own = {n: x.detach().cpu() for n, x in self.weights.items() if n.startswith(begin)}
        for run in range(len(next(iter(own.values())))):
            yield {name.removeprefix(begin): each[run].clone() for name, each in own.items()}

    def _losses(
        self, losses: Losses, weights: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return functional_call(self.asked, weights, (losses, batch))

    def _network(self, name: str) -> list[Tensor]:
        """The stacked parameters of a network."""
        names = [f"parts.{name}.{own}" for own, _ in self.asked.parts[name].named_parameters()]
        own = [self.weights[each] for each in names]
        return [weight.requires_grad_(name in self.trained) for weight in own]

    def _adam(self, weights: list[Tensor]) -> torch.optim.Adam:
        """As agents/optimisers.py makes it, its rate where a recording reads it."""
        cuda = weights[0].is_cuda
        rate = torch.tensor(self.first.options.learning_rate, device=weights[0].device)
        return torch.optim.Adam(weights, lr=rate, fused=True, capturable=cuda)


class TD3BCTogether(Together):
    """TD3BCLearner, E times."""

    first: TD3BCLearner

    def __init__(self, learners: list[TD3BCLearner], device: str):
        super().__init__(learners, device)
        self.done = 0

    def update(self, batch: dict[str, Tensor]) -> None:
        """A step of the critics, every `policy_delay`-th also of the policy."""
        self.done += 1
        self.descend(lambda drawn: {"critic": self.first.critic_loss(drawn)}, batch)
        if self.done % self.first.options.policy_delay == 0:
            self.descend(lambda drawn: {"policy": self.first.policy_loss(drawn)}, batch)
            self.follow("policy", "critic")


class IQLTogether(Together):
    """IQLLearner, E times, each with its own scale of rewards."""

    first: IQLLearner
    trained = (*Together.trained, "value")

    def __init__(self, learners: list[IQLLearner], device: str):
        super().__init__(learners, device)
        scales = [[learner.reward_scale] for learner in learners]
        self.scale, self.first.reward_scale = torch.tensor(scales, device=device), 1.0
        self.updates = torch.zeros((), device=device)

    def update(self, batch: dict[str, Tensor]) -> None:
        """A step of value, critics and policy."""
        (group,) = self.optimisers["policy"].param_groups
        group["lr"].copy_(self.first.options.learning_rate * self.first.decay(self.updates))
        self.descend(self.first.losses, batch | {"reward": batch["reward"] * self.scale})
        self.follow("critic")
        self.updates += 1
