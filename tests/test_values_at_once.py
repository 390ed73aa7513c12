"""Value learners side by side learn what each learns alone."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import decision_s4
from decision_s4.agents.algorithms import algorithm_of
from decision_s4.agents.config import parse
from decision_s4.envs.transitions import Transitions

SIZES = {"--d-model": "16", "--batch-steps": "8", "--steps": "20", "--learning-rate": "1e-3"}


@pytest.fixture
def at_once(monkeypatch, tmp_path_factory):
    """The command's module."""
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.syspath_prepend(str(Path(decision_s4.__file__).parent / "benchmarks"))
    import values_at_once

    yield values_at_once
    for name in ("values_at_once", "peers.value_learners", "peers", "d4rl", "interleaved"):
        sys.modules.pop(name, None)


def training(algo: str, seed: int, *flags: str):
    algorithm = algorithm_of(algo)
    words = [word for pair in SIZES.items() for word in pair]
    words = ["--algo", algo, "--seed", str(seed), *words, *flags]
    return algorithm.begin(parse(algorithm.config, words), torch.device("cpu"))


@pytest.mark.parametrize(
    ("algo", "flags"), [("td3-bc", ["--target-noise", "0"]), ("iql", [])], ids=["td3-bc", "iql"]
)
def test_two_runs_at_once_equal_each_alone(at_once, algo, flags):
    runs = [training(algo, seed, *flags) for seed in (0, 1)]
    alone = [training(algo, seed, *flags).learner for seed in (0, 1)]
    if algo == "iql":
        runs[1].learner.reward_scale = alone[1].reward_scale = 0.5
    tables = at_once.Tables([run.batches for run in runs], [0, 1], "cpu")
    together = at_once.KINDS[algo]([run.learner for run in runs], "cpu")
    for _ in range(7):
        number = (torch.rand(2, 8) * tables.count).long() + tables.first
        drawn = tables.at(number)
        together.update(drawn)
        for run, learner in enumerate(alone):
            learner.update(Transitions(**{name: each[run] for name, each in drawn.items()}))
    for found, learner in zip(together.policies(), alone, strict=True):
        for name, expected in learner.policy.state_dict().items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
    before = training(algo, 0, *flags).learner.policy.backbone[0].weight
    assert (alone[0].policy.backbone[0].weight - before).abs().max() > 1e-4


def test_tables_hold_each_transition_once(at_once):
    batches = training("td3-bc", 0).batches
    tables = at_once.Tables([batches, batches], [1, 0], "cpu")
    count = len(batches.usable()[0])
    assert tables.first.tolist() == [[count], [0]] and tables.count.tolist() == [[count]] * 2
    step, episode = batches.draw()
    places = torch.from_numpy(np.flatnonzero(np.isin(batches.usable()[0], step)))
    expected = batches.transitions(*(each[np.argsort(step)] for each in (step, episode)))
    torch.testing.assert_close(tables.at(places + count)["reward"], expected.reward)
    torch.testing.assert_close(tables.at(places)["next_observation"], expected.next_observation)
    assert tables.draw(5)["action"].shape == (2, 5, 3)


def test_the_command_writes_rows_of_all_runs(at_once, monkeypatch, tmp_path):
    monkeypatch.setattr(at_once, "names_of", lambda *_: "hopper-mixed")
    flags = "--steps 20 --d-model 8 --batch-steps 4 --eval-episodes 1"
    words = ["x", "--device", "cpu", "--datasets", "a", "b", "--seeds", "0", "--flags", flags]
    monkeypatch.setattr(sys, "argv", [*words, "--rows", str(tmp_path / "r.csv"), "--workers", "1"])
    at_once.main()
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert rows[0].startswith("dataset,algorithm,seed,seconds,finished,step,target_return")
    assert sorted(line[:8] for line in rows[1:]) == ["a,td3-bc", "b,td3-bc"]
    assert all(",True,20," in line for line in rows[1:])
