"""Training over several processes, as torchrun starts them: one gradient, the mean over all steps.

    torchrun --nproc-per-node 2 train.py --algo decision-s4

Every process draws the same batch, N times as large for N processes, and takes its own share of
the episodes; their gradients are averaged after each backward pass. So N processes do what one
does with batches N times as large (dropout and noise apart, which each draws for itself). The first
one evaluates, logs and saves. Shapes: S steps of this process's share.

Gradients go as one flat tensor, by hand: DistributedDataParallel joins only what passes through its
own `forward`, and holds on to the group, whose threads then outlive it (`World.leave`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported later, by an optimiser, its defaults would hold the group
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether it evaluates, logs and saves."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is True in any process; every process must ask."""
        if self.size == 1:
            return flag
        asked = torch.tensor(float(flag))
        return bool(_sum(asked) > 0)

    def mean(self, values: Tensor) -> Tensor:
        """Of (S,), such that the mean over processes is the mean over all their steps."""
        if self.size == 1:
            return values.mean()
        count = _sum(torch.tensor(float(len(values)), device=values.device))
        return values.sum() * self.size / count

    def shared(self, value: Tensor) -> Tensor:
        """The mean of a detached scalar over processes."""
        return value if self.size == 1 else _sum(value.clone()) / self.size

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over processes in place of each gradient; all of them have the same ones."""
        if self.size == 1:
            return
        gradients = [each.grad for each in parameters if each.grad is not None]
        flat = _sum(torch.cat([each.reshape(-1) for each in gradients])) / self.size
        parts = flat.split([each.numel() for each in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def leave(self) -> None:
        """The end of a process's part, once every process has come to it.

        gloo's threads let go of tensors after their work is done, for which they need the
        interpreter, and abort a process whose interpreter has ended. Nobody else holds the group,
        so that to destroy it joins them.
        """
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


ALONE = World()
PATIENCE = timedelta(hours=12)  # the others wait while the first evaluates


def join(device: torch.device) -> World:
    """The processes that torchrun started, this one alone without it."""
    if processes() == 1:
        return ALONE
    if not dist.is_initialized():
        cuda = device.type == "cuda"
        backend, own = ("nccl", device) if cuda else ("gloo", None)
        dist.init_process_group(backend, timeout=PATIENCE, device_id=own)
    return World(dist.get_rank(), processes())


def _sum(value: Tensor) -> Tensor:
    if dist.get_backend() == "nccl":
        value = value.cuda()
    dist.all_reduce(value)
    return value
