"""Whole updates of a DecisionLearner on CUDA, recorded once as a graph and replayed in one launch.

An update of a small policy is 236 launches of a few microseconds: launching is the bound.
A graph's shapes and addresses are fixed, so a batch is laid out on the CPU with room to spare and
copied to one place; one that needs more room makes a new graph.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from decision_s4.agents.backbones.base import Mixer
from decision_s4.agents.backbones.fixed import versions
from decision_s4.agents.bootstrapping import follow
from decision_s4.agents.decision import DecisionLearner
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.place import Place
from decision_s4.agents.policy import Policy
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.agents.spare_room import SpareRoom
from decision_s4.envs.steps import Batch
from decision_s4.kernels.cuda_graph import INSTEAD, Recorded

LOG = logging.getLogger(__name__)

Found = tuple[Tensor, Tensor]
"""An update's loss, and the norm of its gradient."""


class RecordedUpdates:
    """Updates `learner` as its own `update` does, up to rounding. Give it batches on the CPU."""

    def __init__(self, learner: DecisionLearner, device: torch.device):
        self.learner, self.device = learner, device
        self.room = SpareRoom(_mixers(learner.policy), device)
        self.fixed = [p for p in learner.policy.parameters() if not p.requires_grad]
        self.fits: Any = None
        """What the recording depends on, beside the values in its place."""
        self.launch = self._new_launch(tries=True)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step; returns detached scalars."""
        given = self.room.lay_out(batch) | {"rates": self._rates()}
        fits = dict(self.room.counts), _shapes(given), versions(self.fixed)
        if fits != self.fits:
            self.fits, self.place = fits, Place(given, self.device)
            self.launch = self._new_launch(self.launch.tries)
        self.place.fill(given)
        loss, norm = self.launch()
        if self.launch.graph:
            self.learner.average.n_averaged += 1  # on the CPU, where no graph counts
        self.learner.schedule.step()
        return {"loss": loss.clone(), "gradient_norm": norm.clone()}  # a replay writes there again

    def _new_launch(self, tries: bool) -> Recorded[Found]:
        return Recorded(self._run, self.device, self._run_within_a_graph, tries)

    def _rates(self) -> Tensor:
        return torch.tensor([group["lr"] for group in self.learner.optimiser.param_groups])

    def _run(self) -> Found:
        """An update by the batch that lies in its place."""
        found = self._descend()
        self.learner.average.update_parameters(self.learner.policy)
        return found

    def _run_within_a_graph(self) -> Found:
        """The same by launches alone: numbers that change are read on the device."""
        learner = self.learner
        with self._rates_on_device():
            found = self._descend()
        follow(learner.average.module, learner.policy, 1 - learner.options.average_decay)
        return found

    def _descend(self) -> Found:
        learner = self.learner
        batch, packing = self.room.read(self.place.given)
        learner.policy.train()
        features, _ = learner.policy(batch, packing=packing)
        losses = learner.policy.head.loss(features, batch.action)
        loss = losses.where(batch.valid, 0).sum() / batch.valid.sum()
        return loss.detach(), learner.descend(loss)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Rates as tensors that the graph reads; outside, the optimiser keeps plain numbers."""
        groups = self.learner.optimiser.param_groups
        before = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.place.given["rates"].unbind(), strict=True):
            group["lr"], group["capturable"] = rate, True
        try:
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = rate, False


def recorded_updates(learner: DecisionLearner, device: torch.device) -> RecordedUpdates | None:
    """Those of `learner`, where possible; the log says why not."""
    reason = _obstacle(learner, device)
    if reason:
        LOG.info("updates are not recorded: %s; %s", reason, INSTEAD)
        return None
    LOG.info("updates are recorded and replayed as one graph")
    return RecordedUpdates(learner, device)


def _obstacle(learner: Any, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type}, not cuda"
    if type(learner) is not DecisionLearner or learner.world.size > 1:
        return "several processes, or more than one loss, take part"
    policy = learner.policy
    if type(policy) is not SequencePolicy or not isinstance(policy.head, BoxHead):
        return "only policies of one token a step with Box actions can be"
    if not all(mixer.can_be_recorded(device) for mixer in _mixers(policy)):
        return f"not all layers of {_name(policy)} can be"
    return None


def _mixers(policy: Policy) -> list[Mixer]:
    assert isinstance(policy, SequencePolicy), "see `_obstacle`"
    return [block.mixer for block in policy.backbone.blocks]


def _name(policy: SequencePolicy) -> str:
    return " ".join([policy.options.backbone, *policy.options.backbone_options])


def _shapes(tree: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(leaf.shape, leaf.dtype) for leaf in tree_leaves(tree)]
