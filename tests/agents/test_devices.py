"""Which device a program takes: the one named, and under torchrun a GPU a process."""

from types import SimpleNamespace

import pytest
import torch

from decision_s4.agents import devices
from decision_s4.agents.devices import choose_device
from decision_s4.envs.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch):
    """A torch that has two; lists what was made the current one."""
    current = []
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    cuda.set_device = current.append
    make = lambda size, device: SimpleNamespace(device=torch.device(device))  # noqa: E731
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=cuda, empty=make))
    return current


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "meta", "cuda:x", "cpu:1"):
        with pytest.raises(UserError, match=f"--device '{name}' is unknown; use auto, cpu, cuda"):
            choose_device(name)


def test_the_one_named_is_the_current_one(two_gpus):
    assert choose_device("cuda:1") == torch.device("cuda:1")
    choose_device("cpu")
    assert two_gpus == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(name, two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose_device(name) == torch.device("cuda", rank) == two_gpus[-1]
    with pytest.raises(UserError, match="--device cuda:0 is one GPU for 3 processes; use cuda"):
        choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"more processes than GPUs \(2\); start one a GPU"):
        choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")
