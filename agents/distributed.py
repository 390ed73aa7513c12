"""Training over several processes, as torchrun starts them: one gradient, the mean over all steps.

    torchrun --nproc-per-node 2 train.py --algo decision-s4

Every process draws the same batch, N times as large for N processes, and takes its own share of
the episodes; DistributedDataParallel joins the gradients. So N processes do what one does with
batches N times as large (dropout and noise apart, which each draws for itself). The first one
evaluates, logs and saves. Shapes: S steps of this process's share.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over processes in each backward pass."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def leave(self) -> None:
        """The end of a process's part, once every process has come to it.

        Whoever ends while gloo's threads still let go of tensors is aborted by the interpreter.
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
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return World(dist.get_rank(), processes())


def _sum(value: Tensor) -> Tensor:
    if dist.get_backend() == "nccl":
        value = value.cuda()
    dist.all_reduce(value)
    return value
