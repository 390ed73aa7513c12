"""Checkpoints: exact resume, no death that loses a run, no damage that goes unseen."""

import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from decision_s4.agents.checkpoint import load, save
from decision_s4.agents.rng import rng_state, set_rng_state
from decision_s4.agents.weights import load_weights_into
from decision_s4.envs.errors import UserError

FILES = ["weights.safetensors", "trainer.safetensors", "state.json"]


def save_number(run_dir: Path, step: int, best: bool = False, **options) -> Path:
    """A checkpoint in which every file tells its step."""
    weights, trainer = {"w": torch.full((50,), float(step))}, {"t": torch.tensor(step), "n": step}
    return save(run_dir, step, weights, trainer, {"score": step}, best, **options)


def loaded_number(run_dir: Path, which: str = "last") -> int:
    found = load(run_dir, which)
    told = {found.weights["w"][0].item(), found.trainer["t"].item(), found.trainer["n"]}
    assert told | {found.metadata["score"]} == {found.step}
    return found.step


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_last_and_best_remain(tmp_path: Path) -> None:
    for step in range(1, 6):
        path = save_number(tmp_path, step, best=step == 2)
    assert path == tmp_path / "checkpoints" / "5"
    assert names(tmp_path) == ["2", "5", "best", "last"]
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("5")
    assert [loaded_number(tmp_path, w) for w in ("last", "best", "2")] == [5, 2, 2]
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)


def test_keep_counts_the_newest_up_to_this_step(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save_number(tmp_path, step, best=step == 40, keep=3)
    assert names(tmp_path) == ["20", "30", "40", "best", "last"]
    save_number(tmp_path, 25, keep=2)  # resumed from 20: what came after was another future
    assert names(tmp_path) == ["20", "25", "40", "best", "last"]


def test_a_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 3, {"w": torch.zeros(1)}, None, {}, best=True)
    save(tmp_path, 3, {"w": torch.ones(1)}, None, {}, best=False)
    assert load(tmp_path).weights["w"].item() == 1
    assert names(tmp_path) == ["3", "best", "last"]


def test_tied_sliced_and_transposed_weights_are_kept(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    weights = {"a": base, "tied": base, "t": base.T, "row": base[1], "half": base.half()}
    weights |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 2), "c": base * 1j}
    save(tmp_path, 1, weights, {}, {}, best=False)
    back = load(tmp_path).weights
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], weights[n]) and back[n].dtype == weights[n].dtype for n in back)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty"])
def test_damage_is_seen_and_the_newest_complete_one_taken(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_number(tmp_path, 1, best=True)
    path = save_number(tmp_path, 2) / file
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"cut": data[:-1], "flip": flipped}.get(damage, b""))
    if damage == "remove":
        path.unlink()
    with pytest.raises(UserError, match=r"checkpoints/2: no complete checkpoint \(") as error:
        load(tmp_path, "2")
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert loaded_number(tmp_path) == 1
    assert "checkpoints/last: no complete checkpoint" in caplog.text
    assert "taking step 1" in caplog.text


def test_a_dangling_last_falls_back(tmp_path: Path) -> None:
    save_number(tmp_path, 1, best=True)
    path = save_number(tmp_path, 2)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert loaded_number(tmp_path) == 1


@pytest.mark.parametrize("which", ["../last", "newest", "", "-1", "1.5"])
def test_only_links_and_steps_are_opened(tmp_path: Path, which: str) -> None:
    save_number(tmp_path, 1)
    with pytest.raises(UserError, match=r"is unknown; give last, best or a step"):
        load(tmp_path, which)


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: holds no checkpoints"):
        load(tmp_path / "nowhere")
    save_number(tmp_path, 1)
    with pytest.raises(UserError, match=r"best: no complete checkpoint \(state.json is missing\)"):
        load(tmp_path, "best")


def test_a_step_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    save_number(tmp_path, 10, best=True)
    save_number(tmp_path, 20)
    with pytest.raises(UserError, match=r"has no checkpoint of step 15; it has 10, 20$"):
        load(tmp_path, "15")


def test_who_plays_needs_no_trainer(tmp_path: Path) -> None:
    save_number(tmp_path, 10)
    whole = load(tmp_path)
    (tmp_path / "checkpoints" / "10" / "trainer.safetensors").unlink()
    found = load(tmp_path, with_trainer=False)
    assert found.trainer is None
    assert found.weights.keys() == whole.weights.keys() and found.metadata == whole.metadata
    with pytest.raises(UserError, match=r"\(trainer.safetensors is missing\)"):
        load(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write checkpoint 1: Not a directory; free"):
        save_number(tmp_path / "file", 1)


def test_a_full_disk_leaves_the_run_as_it_was(tmp_path: Path, monkeypatch) -> None:
    save_number(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write checkpoint 2: No space left on device"):
        save_number(tmp_path, 2)
    assert names(tmp_path) == ["1", "last"]


class Died(BaseException):
    """Stands for SIGKILL: no handler of the code under test runs."""


@pytest.mark.parametrize("again", [False, True], ids=["new-step", "same-step"])
def test_death_before_any_system_call_leaves_a_run_that_loads(
    tmp_path: Path, monkeypatch, again: bool
) -> None:
    """Dies before the 1st, 2nd, ... change to the disk, until a save gets through."""
    calls = ["os.rename", "os.replace", "os.symlink", "os.mkdir", "os.rmdir", "os.unlink"]
    for deadly in itertools.count(1):
        run_dir, count = tmp_path / str(deadly), itertools.count(1)
        save_number(run_dir, 1)
        save_number(run_dir, 2, best=True)
        with monkeypatch.context() as patch:
            for call in [*calls, "os.fsync"]:
                patch.setattr(call, dying(getattr(os, call[3:]), count, deadly))
            try:
                save_number(run_dir, 2 if again else 3, best=True)
                break
            except Died:
                pass
        assert loaded_number(run_dir) in (2, 3)
        assert again or loaded_number(run_dir, "best") in (2, 3)
        save_number(run_dir, 4)
        assert loaded_number(run_dir) == 4
        assert not [name for name in names(run_dir) if name.startswith(".")]
    assert deadly > 10


def dying(function, count, deadly: int):
    def call(*args, **options):
        if next(count) == deadly:
            raise Died
        return function(*args, **options)

    return call


SAVE_UNTIL_KILLED = """
import itertools, os, sys
from pathlib import Path
import torch
from decision_s4.agents.checkpoint import save

torch.set_num_threads(1)
for line in sys.stdin:  # imports once; forks a process for each run folder it is told
    child = os.fork()
    if child == 0:
        for step in itertools.count(1):
            weights = {"w": torch.full((50_000,), float(step))}
            trainer = {"t": torch.tensor(step), "n": step}
            save(Path(line.strip()), step, weights, trainer, {"score": step}, best=step % 3 == 0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(0)
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as saver:
        for run in range(30):
            run_dir = tmp_path / str(run // 3)  # a folder is killed in, resumed and killed again
            print(run_dir, file=saver.stdin)
            child = int(saver.stdout.readline())
            while not (run_dir / "checkpoints" / "last").is_symlink():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            while Path(f"/proc/{child}").exists() and saver.poll() is None:
                time.sleep(0.001)
            assert loaded_number(run_dir) >= 1
        saver.stdin.close()


class Training:
    """AdamW, a schedule, dropout and noise: everything that a resume must bring back."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.9**n)
        self.step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            loss = (self.model(torch.randn(16, 4)) - random.random()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1

    def save(self, run_dir: Path) -> None:
        trainer = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": rng_state(),
        }
        save(run_dir, self.step, self.model.state_dict(), trainer, {}, best=False)

    def resume(self, run_dir: Path) -> None:
        found = load(run_dir)
        load_weights_into(self.model, found.weights, found.path)
        self.optimizer.load_state_dict(found.trainer["optimizer"])
        self.schedule.load_state_dict(found.trainer["schedule"])
        set_rng_state(found.trainer["rng"])
        self.step = found.step


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    random.seed(0)
    whole = Training()
    whole.run(5)
    whole.save(tmp_path)
    whole.run(5)
    resumed = Training()
    random.seed(99)
    resumed.resume(tmp_path)
    resumed.run(5)
    assert resumed.step == whole.step == 10
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_another_model_name_the_fault_and_change_nothing() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {n: t + 1 for n, t in before.items()}
    weights["head"] = weights.pop("1.bias")
    weights["0.weight"] = torch.zeros(3, 5)
    weights["0.bias"] = weights["0.bias"].double()
    with pytest.raises(UserError) as error:
        load_weights_into(module, weights, "runs/x")
    assert str(error.value) == (
        "runs/x: weights of another model: 1 missing (first: 1.bias), 1 unknown (first: head), "
        "1 of another shape (first: 0.weight is (3, 5) float32, not (3, 2) float32), "
        "1 of another dtype (first: 0.bias is (3,) float64, not (3,) float32); check its config"
    )
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
