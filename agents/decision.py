"""Return-conditioned learning from whole logged trajectories: Decision S4, section "off-policy".

    minimise over policies π:  mean over all steps of  d(π(R_t, s_t, a_{t−1}, h_{t−1}), a_t)

d is the squared error for Box actions, the cross-entropy for discrete ones (arXiv 2306.05167).
Algorithms of this family differ in backbone and tokens, not in this file.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from decision_s4.agents.distributed import ALONE, World
from decision_s4.agents.kept import kept
from decision_s4.agents.optimisers import apart_from_recurrence, schedule
from decision_s4.agents.policy import Policy


@dataclass(frozen=True)
class OptimiserOptions:
    """How the weights take a step: AdamW, and an average of them that acts."""

    learning_rate: float = 2e-3
    """The highest rate of AdamW, reached after the warm-up."""
    recurrence_learning_rate: float = 5e-5
    """For poles, time steps and the read-out of memory: no weight decay, and this rate at most.
    Slow on purpose: memory taken up fast learns whom the data shows, not what to do."""
    weight_decay: float = kept(1e-4)
    """Of matrices, decoupled as in AdamW; vectors and the recurrence do not decay."""
    warmup_steps: int = 100
    """Updates in which the rate rises from 0, linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate after the warm-up: half a cosine down to 0 at the last step, or constant."""
    gradient_clip: float = 0.25
    """Largest norm of all gradients together; longer ones are shortened to it."""
    average_decay: float = 0.995
    """Decay of the running average of weights, which acts and is saved; 0: the last weights."""
    record_updates: bool = True
    """On a GPU, for most layers: record a whole update once and replay it in one launch. What
    cannot be recorded runs operation by operation."""


class DecisionLearner:
    """Fits a policy to packed trajectories, one update at a time."""

    def __init__(
        self,
        policy: Policy,
        options: OptimiserOptions,
        total_steps: int,
        world: World = ALONE,
    ):
        self.policy, self.options, self.world = policy, options, world
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(policy, options), lr=options.learning_rate, fused=True
        )
        factor = schedule(options.schedule, options.warmup_steps, total_steps)
        self.schedule = LambdaLR(self.optimiser, factor)
        self.average = AveragedModel(
            policy, multi_avg_fn=get_ema_multi_avg_fn(options.average_decay)
        )

    @property
    def averaged_policy(self) -> Policy:
        """The policy with averaged weights, in evaluation mode."""
        policy = self.average.module.eval()
        assert isinstance(policy, Policy)
        return policy

    @property
    def learning_rate(self) -> float:
        """The rate of the next step, the recurrence's apart."""
        return float(self.schedule.get_last_lr()[0])

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One gradient step on a packed batch (see envs/batches.py); returns detached scalars."""
        self.policy.train()
        loss = self.loss(batch)
        norm = self.descend(loss)
        self.schedule.step()
        self.average.update_parameters(self.policy)
        return {"loss": self.world.shared(loss.detach()), "gradient_norm": norm}

    def descend(self, loss: Tensor) -> Tensor:
        """Take one step down its gradient; returns the gradient's norm."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.world.average_gradients(self.policy.parameters())
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.options.gradient_clip)
        self.optimiser.step()
        return norm.detach()

    def loss(self, batch: Any) -> Tensor:
        """Mean over valid steps of the distance to the logged action."""
        features, _ = self.policy(batch)
        action = batch.action
        if batch.valid is not None:  # padding is no action of the space
            features, action = features[batch.valid], action[batch.valid]
        return self.world.mean(self.policy.head.loss(features, action))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]


def _parameter_groups(policy: Policy, options: OptimiserOptions) -> list[dict[str, Any]]:
    """Matrices decay; vectors do not; the recurrence has its own rate and does not."""
    rest, recurrence = apart_from_recurrence(policy)
    slow = min(options.learning_rate, options.recurrence_learning_rate)
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        {"params": recurrence, "weight_decay": 0.0, "lr": slow},
    ]
    return [group for group in groups if group["params"]]
