"""Two processes train as one does with batches twice as large."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from decision_s4 import train
from decision_s4.agents import checkpoint
from decision_s4.agents.distributed import ALONE

SMALL = (
    "--steps 6 --eval-every 3 --eval-episodes 1 --no-video --d-model 8 --d-embed 8 --n-layers 1 "
    "--backbone-options d_state=4 --threads 1 --device cpu --seed 3 --schedule constant"
)


def together(flags: str) -> None:
    """Two processes by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "decision_s4.train", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def folders(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)


def test_two_processes_equal_one_with_the_double_batch_also_after_a_resume():
    together(f"{SMALL} --steps 3 --batch-steps 600 --run-dir two")
    together("--resume two --steps 6")
    assert train.main([*SMALL.split(), "--batch-steps", "1200", "--run-dir", "one"]) == 0
    one, two = (checkpoint.load(Path(name)) for name in ("one", "two"))
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=1e-4, atol=1e-6)
    assert Path("two/eval.csv").read_text().count("\n") == 5  # one process wrote it


@pytest.mark.parametrize("algo", ["ppo", "ds4-online", "sac"])
def test_what_trains_in_one_process_refuses_two(algo, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(["--algo", algo, "--env", "Pendulum-v1", "--device", "cpu"]) == 2
    said = f"train.py: --algo {algo} trains in one process; start it without torchrun\n"
    assert capsys.readouterr().err == said
    assert not Path("runs").exists()


GROUP_OF_ONE = """
import pathlib, torch, torch.distributed as dist
from decision_s4.agents.distributed import World

def threads():
    names = [each.read_text() for each in pathlib.Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
world, weight = World(0, 2), torch.nn.Parameter(torch.ones(3))
torch.optim.AdamW([weight])
world.mean(weight).backward()
world.average_gradients([weight])
print(threads() > 0, weight.grad.tolist())
world.leave()
print(threads(), dist.is_initialized())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux")
def test_an_end_leaves_no_group_and_none_of_its_threads():
    """One that lives on while the interpreter ends aborts the process, once in some dozens."""
    command = [sys.executable, "-c", GROUP_OF_ONE]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    third = torch.tensor(1 / 3).item()
    assert said.splitlines() == [f"True {[third] * 3}", "0 False"]


def test_alone_a_mean_is_a_mean():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert ALONE.mean(values) == 3
    assert ALONE.any(True) and not ALONE.any(False)
    assert ALONE.leads
