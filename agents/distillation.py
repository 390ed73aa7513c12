"""Linear attention that takes over from a transformer: Hedgehog, arXiv 2402.04347, section 4.

    first   minimise over feature maps  mean_{l, h, t} Σ_s p_ts log(p_ts / w_ts)
            p_t = softmax_s(q_t · k_s / √d),   w_ts = φ(q_t) · φ(k_s) / Σ_r φ(q_t) · φ(k_r)
    then    imitation, all weights

q and k are the transformer's, of its own activations in layer l; everything but the feature maps
begins as a copy of it. p sees the transformer's window, w the whole episode.
Shapes: B rows, T steps, I of them, H heads, K width of a head.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from decision_s4.agents import checkpoint, saved
from decision_s4.agents.backbones import Mixer
from decision_s4.agents.backbones.linear_attention import Hedgehog
from decision_s4.agents.backbones.transformer import Transformer
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.distributed import ALONE, World
from decision_s4.agents.kept import kept
from decision_s4.agents.policy import PolicyOptions
from decision_s4.agents.sequence_policy import SequencePolicy
from decision_s4.envs.errors import UserError

M = TypeVar("M", bound=Mixer)
QUERIES = 64
"""Steps of a row, drawn anew for each update, whose attention is compared."""
OWN = ("backbone", "backbone_options", "dropout", "observation_noise")
"""Options in which a policy may differ from its teacher."""
RENAMED = {"queries_keys_values": "in_proj", "out": "out_proj"}


@dataclass(frozen=True)
class DistillationOptions:
    """Whether and for how long a transformer teaches."""

    distill_from: Path | None = kept(None)
    """With --backbone hedgehog: folder of a transformer's run to begin from, of the same sizes and
    trained with positions=none; its attention is what feature maps learn first."""
    distill_steps: int = 500
    """Updates at first that train the feature maps alone, towards the transformer's attention."""


class DistilledLearner(DecisionLearner):
    """A DecisionLearner of a hedgehog policy that begins as its teacher but for its attention."""

    policy: SequencePolicy

    def __init__(
        self,
        policy: SequencePolicy,
        teacher: SequencePolicy,
        options: OptimiserOptions,
        total_steps: int,
        distill_steps: int,
        world: World = ALONE,
    ):
        copy_weights(policy, teacher)
        super().__init__(policy, options, total_steps, world)
        self.teacher, self.distill_steps = teacher.eval().requires_grad_(False), distill_steps

    def loss(self, batch: Any) -> Tensor:
        """Of attention at first, then the imitation's."""
        if self.schedule.last_epoch >= self.distill_steps:
            return super().loss(batch)
        steps = torch.randperm(batch.start.shape[1], device=batch.start.device)[:QUERIES]
        losses = attention_loss(self.policy, self.teacher, batch, steps)
        return self.world.mean(losses[batch.valid[:, steps]])


def load_teacher(folder: Path, options: PolicyOptions) -> SequencePolicy:
    """The transformer of a run. Raises UserError where a policy of `options` cannot begin so."""
    if options.backbone != "hedgehog":
        raise UserError(f"--distill-from needs --backbone hedgehog, not {options.backbone}")
    found = saved.rebuild(checkpoint.load(folder, "best", with_trainer=False))
    kinds = {type(x.mixer) for x in found.backbone.blocks} if _one_token(found) else set()
    if not _one_token(found) or kinds != {Transformer}:
        raise UserError(f"--distill-from {folder} is no run with --backbone transformer")
    if any(mixer.options.positions != "none" for mixer in _mixers(found, Transformer)):
        raise UserError(
            f"--distill-from {folder}: its attention knows positions, which hedgehog does not; "
            "train it with --backbone-options positions=none"
        )
    for name in (field.name for field in fields(PolicyOptions) if field.name not in OWN):
        ours, theirs = getattr(options, name), getattr(found.options, name)
        if ours != theirs:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {ours}, but {theirs} in {folder}; use the same")
    return found


def _one_token(policy: saved.Saved) -> TypeGuard[SequencePolicy]:
    return isinstance(policy, SequencePolicy)


def _mixers(policy: SequencePolicy, kind: type[M]) -> list[M]:
    """Those of all layers that are of a kind."""
    blocks = policy.backbone.blocks
    return [block.mixer for block in blocks if isinstance(block.mixer, kind)]


@torch.no_grad()
def copy_weights(policy: SequencePolicy, teacher: SequencePolicy) -> None:
    """Give a policy all of its teacher's weights; its own feature maps stay.

    Raises:
        UserError: for another number of heads or other spaces.
    """
    ours = {mixer.shape[0] for mixer in _mixers(policy, Hedgehog)}
    theirs = {mixer.heads for mixer in _mixers(teacher, Transformer)}
    if ours != theirs:
        raise UserError(f"n_heads is {min(ours)}, but {min(theirs)} in the transformer's run")
    if policy.observation_space != teacher.observation_space:
        raise UserError("--distill-from: the transformer's run has other observations")
    weights = {_renamed(name): value for name, value in teacher.state_dict().items()}
    maps = {n: v for n, v in policy.state_dict().items() if n.endswith("feature_maps")}
    policy.load_state_dict(weights | maps)


def _renamed(name: str) -> str:
    *lead, module, kind = name.split(".")
    return ".".join([*lead, RENAMED.get(module, module), kind]) if "mixer" in lead else name


def attention_loss(
    policy: SequencePolicy, teacher: SequencePolicy, batch: Any, steps: Tensor
) -> Tensor:
    """(B, I): how far the policy's attention weights are from the teacher's at `steps` (I,), mean
    over layers and heads; 0 where they are the same."""
    losses, mask = [], _seen(batch, steps)
    read = _mixer_inputs(teacher, batch)
    pairs = zip(_mixers(policy, Hedgehog), _mixers(teacher, Transformer), read, strict=True)
    for ours, theirs, x in pairs:
        with torch.no_grad():
            q, k = theirs.queries_and_keys(x)
            q = q[:, steps]
            p = _softmax(q, k, mask & _within(mask, steps, theirs.context))
        log_w = _log_weights(ours, q, k, mask)
        losses.append((torch.xlogy(p, p) - p * log_w).sum(-1).mean(1))
    return torch.stack(losses).mean(0)


@torch.no_grad()
def _mixer_inputs(teacher: SequencePolicy, batch: Any) -> list[Tensor]:
    """What each layer's attention reads, (B, T, D)."""
    found: list[Tensor] = []
    hooks = [
        block.mixer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        for block in teacher.backbone.blocks
    ]
    teacher(batch)
    for hook in hooks:
        hook.remove()
    return found


def _seen(batch: Any, steps: Tensor) -> Tensor:
    """(B, 1, I, T) bool: steps of the same episode, no later."""
    episode, place = batch.start.cumsum(1), torch.arange(batch.start.shape[1], device=steps.device)
    same = episode[:, steps, None] == episode[:, None]
    return (same & (place <= steps[:, None]))[:, None]


def _within(mask: Tensor, steps: Tensor, window: int) -> Tensor:
    """(I, T) bool: no older than the window."""
    return steps[:, None] - torch.arange(mask.shape[-1], device=steps.device) < window


def _softmax(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)


def _log_weights(mixer: Hedgehog, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """log w (B, H, I, T), 0 where nothing is seen."""
    products = torch.einsum("bthf,bshf->bhts", *mixer.features(q, k))
    sums = (products * mask).sum(-1, keepdim=True)
    return (products.log() - sums.log()).masked_fill(~mask, 0)
