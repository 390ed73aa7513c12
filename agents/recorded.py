"""Whole updates of a DecisionLearner on CUDA, recorded once as a graph and replayed in one launch.

An update of a small policy is 236 launches of a few microseconds: launching is the bound.
A graph's shapes and addresses are fixed, so a batch is laid out on the CPU with room to spare and
copied to one place; one that needs more room makes a new graph. Shapes: B rows, T steps.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from decision_s4.agents.backbones.base import Mixer
from decision_s4.agents.backbones.diff_mamba import DiffMamba
from decision_s4.agents.backbones.fixed import versions
from decision_s4.agents.backbones.gated_linear import GatedLinearAttention
from decision_s4.agents.backbones.hyena import Hyena
from decision_s4.agents.backbones.mamba import Mamba
from decision_s4.agents.backbones.mamba2 import Mamba2
from decision_s4.agents.backbones.mimo import MimoStateSpace
from decision_s4.agents.backbones.mlp import Mlp
from decision_s4.agents.backbones.s4 import LinearStateSpace
from decision_s4.agents.backbones.transformer import Transformer
from decision_s4.agents.critics import follow
from decision_s4.agents.decision import DecisionLearner
from decision_s4.agents.heads import BoxHead
from decision_s4.agents.policy import SequencePolicy
from decision_s4.envs.batches import Batch
from decision_s4.envs.spaces import Tree
from decision_s4.kernels.cuda_graph import WARMUP, aside, record
from decision_s4.kernels.lti_scan import fastest
from decision_s4.kernels.lti_scan.chunked import chunk_length
from decision_s4.kernels.packing import ChunkLayout, Packing, Walk, widened

LOG = logging.getLogger(__name__)
STEPS, CHUNKS = 256, 4  # room is made in multiples of so many
ALIGNMENT = 16  # bytes
INSTEAD = "they run operation by operation"
KINDS = (
    *(DiffMamba, GatedLinearAttention, Hyena, LinearStateSpace, Mamba, Mamba2, MimoStateSpace),
    *(Mlp, Transformer),
)
"""Layers that a recording may hold: what they read of where episodes lie has a fixed shape."""


class Learned(NamedTuple):
    """What an update reads of a Batch."""

    return_to_go: Tensor
    observation: Tree
    previous_action: Tree
    action: Tree
    start: Tensor
    valid: Tensor


class RecordedUpdates:
    """Updates `learner` as its own `update` does, up to rounding. Give it batches on the CPU."""

    def __init__(self, learner: DecisionLearner, device: torch.device):
        self.learner, self.device = learner, device
        self.steps, self.counts, self.fits = 0, {}, None
        self.warm, self.possible, self.replay = 0, True, None
        self.fixed = [p for p in learner.policy.parameters() if not p.requires_grad]
        self.windows = {each.context for each in _mixers(learner) if isinstance(each, Transformer)}
        systems = [each for each in _mixers(learner) if isinstance(each, LinearStateSpace)]
        self.fused = all(fastest(each.discretise()) == "triton" for each in systems)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step; returns detached scalars."""
        given = self._lay_out(batch)
        shapes = dict(self.counts), [(x.shape, x.dtype) for x in tree_leaves(given)]
        fits = shapes, versions(self.fixed)
        if fits != self.fits:
            self.replay, self.warm, self.fits = None, 0, fits
            self.place = Place(given, self.device)
        self.place.fill(given)
        found = self._replayed() if self._ready() else self._run_aside()
        self.learner.schedule.step()
        return dict(zip(("loss", "gradient_norm"), found, strict=True))

    def _lay_out(self, batch: Batch) -> dict[str, Any]:
        """The batch with steps to spare, where its episodes lie, and the rates of the update."""
        self.steps = max(self.steps, _rounded(batch.start.shape[1], STEPS))
        parts = {name: getattr(batch, name) for name in Learned._fields}
        parts = tree_map(lambda leaf: _lengthened(leaf, self.steps), parts)
        packing = Packing(parts["start"], parts["valid"])
        known = {"walk": self._walk(packing), "layouts": self._layouts(packing)}
        rates = torch.tensor([group["lr"] for group in self.learner.optimiser.param_groups])
        return {"batch": parts, "known": known, "rates": rates}

    def _walk(self, packing: Packing) -> dict[str, Tensor]:
        return {n: x for n, x in packing.walk._asdict().items() if x is not None}

    def _layouts(self, packing: Packing) -> dict[int, dict[str, Tensor]]:
        """By their length, where the chunks lie that attention and unfused scans ask for."""
        lengths = {min(window, self.steps) for window in self.windows}
        if not self.fused:
            lengths.add(chunk_length(self.steps, self.device))
        return {length: self._layout(packing, length) for length in sorted(lengths)}

    def _layout(self, packing: Packing, length: int) -> dict[str, Tensor]:
        """Where its chunks lie, with chunks to spare."""
        layout, known = packing.chunks(length), self.counts.get(length, ())
        ranks = max(len(known), len(layout.counts))
        pairs = zip(_filled(known, ranks), _filled(layout.counts, ranks), strict=True)
        counts = tuple(max(room, _rounded(count, CHUNKS)) for room, count in pairs)
        self.counts[length] = counts
        layout = _parts(widened(layout, counts))
        del layout["counts"]
        return layout

    def _run(self) -> tuple[Tensor, Tensor]:
        """An update by the batch that lies in its place: loss, and norm of the gradient."""
        given, learner = self.place.given, self.learner
        batch, known = Learned(**given["batch"]), given["known"]
        walk = Walk(**{"order": None} | known["walk"])
        layouts = known["layouts"].items()
        layouts = [ChunkLayout(**parts, counts=self.counts[length]) for length, parts in layouts]
        packing = Packing.prepared(batch.start, batch.valid, walk, *layouts)
        learner.policy.train()
        features, _ = learner.policy(batch, packing=packing)
        losses = learner.policy.head.loss(features, batch.action)
        loss = losses.where(batch.valid, 0).sum() / batch.valid.sum()
        return loss.detach(), learner.descend(loss)

    def _run_and_average(self) -> tuple[Tensor, Tensor]:
        found, learner = self._run(), self.learner
        follow(learner.average.module, learner.policy, 1 - learner.options.average_decay)
        return found

    def _ready(self) -> bool:
        """Whether there is a recording; makes it when it is time to."""
        if self.replay is None and self.possible and self.warm >= WARMUP:
            try:
                with self._rates_on_device():
                    self.replay, self.found = record(self._run_and_average)
            except RuntimeError as error:
                self.possible, reason = False, str(error).splitlines()[0]
                LOG.warning("an update cannot be recorded (%s); %s", reason, INSTEAD)
        return self.replay is not None

    def _replayed(self) -> tuple[Tensor, Tensor]:
        self.replay()
        self.learner.average.n_averaged += 1
        loss, norm = self.found
        return loss.clone(), norm.clone()

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

    def _run_aside(self) -> tuple[Tensor, Tensor]:
        """An update on a stream of its own, as those before a recording must be."""
        self.warm += 1
        with aside(self.device):
            found = self._run()
        self.learner.average.update_parameters(self.learner.policy)
        return found


class Place:
    """Tensors of a tree side by side in one buffer on the device, filled by one copy."""

    def __init__(self, tree: Any, device: torch.device):
        cuda = device.type == "cuda"
        size = sum(_span(leaf) for leaf in tree_leaves(tree))
        self.host = torch.zeros(size, dtype=torch.uint8, pin_memory=cuda)
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.written, self.given = _views(self.host, tree), _views(self.buffer, tree)
        self.copied = torch.cuda.Event() if cuda else None

    def fill(self, tree: Any) -> None:
        """Copy the tree's values there."""
        if self.copied:
            self.copied.synchronize()  # the copy before has been read
        for place, leaf in zip(tree_leaves(self.written), tree_leaves(tree), strict=True):
            place.copy_(leaf)
        self.buffer.copy_(self.host, non_blocking=True)
        if self.copied:
            self.copied.record()


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
    if not all(isinstance(mixer, KINDS) for mixer in _mixers(learner)):
        return f"not all layers of {_name(policy)} can be"
    return None


def _mixers(learner: DecisionLearner) -> list[Mixer]:
    return [block.mixer for block in learner.policy.backbone.blocks]


def _name(policy: SequencePolicy) -> str:
    return " ".join([policy.options.backbone, *policy.options.backbone_options])


def _parts(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _rounded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _filled(counts: tuple[int, ...], length: int) -> tuple[int, ...]:
    return counts + (0,) * (length - len(counts))


def _lengthened(leaf: Tensor, steps: int) -> Tensor:
    """(B, T, …) with steps of zeros at the end."""
    longer = leaf.new_zeros(len(leaf), steps, *leaf.shape[2:])
    longer[:, : leaf.shape[1]] = leaf
    return longer


def _span(leaf: Tensor) -> int:
    """Bytes that a leaf takes in a buffer."""
    return _rounded(leaf.numel() * leaf.element_size(), ALIGNMENT)


def _views(buffer: Tensor, tree: Any) -> Any:
    """The tree's shapes and types, one after another in `buffer`."""
    begin = 0

    def view(leaf: Tensor) -> Tensor:
        nonlocal begin
        used = buffer[begin : begin + leaf.numel() * leaf.element_size()]
        begin += _span(leaf)
        return used.view(leaf.dtype).view(leaf.shape)

    return tree_map(view, tree)
