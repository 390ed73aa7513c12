"""What a program computes on: its device, and its threads of the CPU."""

import os
import re

import torch

from decision_s4.agents.distributed import processes
from decision_s4.envs.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that `--device` names, the current one from now on.

    Of torchrun's processes each takes a GPU of its own. Raises UserError where this machine has no
    such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device '{name}' is unknown; use auto, cpu, cuda or cuda:1")
    if name != "cpu" and processes() > 1:
        name = _own_gpu(name)
    try:
        device = torch.empty(0, device=name).device
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device {name} cannot be used ({reason}); use auto or cpu") from None
    return device


def use_threads(count: int) -> None:
    """Let torch compute with so many CPU threads, 0 for all cores."""
    torch.set_num_threads(count or os.cpu_count() or 1)


def _own_gpu(name: str) -> str:
    """That of this process among those that torchrun started on this machine."""
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if name != "cuda":
        raise UserError(f"--device {name} is one GPU for {processes()} processes; use cuda")
    if 0 < count <= rank:
        raise UserError(f"torchrun started more processes than GPUs ({count}); start one a GPU")
    return f"cuda:{rank}"
