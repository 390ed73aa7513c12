"""Decision Transformers side by side learn what each learns alone."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import decision_s4
from decision_s4.agents.decision import DecisionLearner, OptimiserOptions
from decision_s4.agents.options import part
from decision_s4.envs import datasets
from decision_s4.envs.windows import WindowBatches

FLAGS = (
    "--dropout 0 --backbone-options n_heads=1,window=60,positions=none,attention_dropout=0 "
    "--warmup-steps 3 --learning-rate 1e-3 --weight-decay .1 --n-layers 2"
)


@pytest.fixture
def at_once(monkeypatch, tmp_path_factory):
    """The command's module."""
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.syspath_prepend(str(Path(decision_s4.__file__).parent / "benchmarks"))
    import transformers_at_once

    yield transformers_at_once
    for name in ("transformers_at_once", "peers.decision_transformers", "peers", "d4rl"):
        sys.modules.pop(name, None)


def test_two_runs_at_once_equal_each_alone(at_once):
    config, data = at_once.config_of(FLAGS.split()), datasets.load("hopper-mixed")
    policies = [at_once.new_policy(data, config, seed) for seed in (0, 1)]
    windows = at_once.Windows([data], [0, 0], "cpu")
    padded = at_once.stacked(policies, width=14, actions=5)  # as beside a robot with more joints
    windows.data["observation"] = torch.nn.functional.pad(windows.data["observation"], (0, 3))
    windows.data["action"] = torch.nn.functional.pad(windows.data["action"], (0, 2))
    windows.used = torch.nn.functional.pad(windows.used, (0, 2))
    together = at_once.Learner(padded, windows, config)
    alone = [DecisionLearner(p, part(config, OptimiserOptions), 9) for p in policies]
    draw = np.random.default_rng(0)
    for _ in range(5):
        begin = draw.integers(data.num_steps, size=(2, 4))
        begin[:, 0] = data.num_steps - 3  # an episode's end within the window
        loss = together.learn(windows.windows(torch.from_numpy(begin), config.context_steps))
        for learner, first, found in zip(alone, begin, loss, strict=True):
            batch = WindowBatches(data, config.context_steps, 4, 0).windows(first)
            assert learner.update(batch)["loss"].item() == pytest.approx(found.item(), rel=1e-4)
    for run, policy in enumerate(policies):
        copy = at_once.new_policy(data, config, seed=7)
        at_once.unstacked(together.weights, run, copy)
        for found, expected in zip(copy.parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


def test_a_stopped_training_goes_on_from_its_state(at_once):
    config, data = at_once.config_of(FLAGS.split()), datasets.load("hopper-mixed")

    def learner(seed: int):
        policies = [at_once.new_policy(data, config, seed)]
        windows = at_once.Windows([data], [0], "cpu")
        return at_once.Learner(at_once.stacked(policies, 11, 3), windows, config)

    first, second = learner(seed=0), learner(seed=1)
    batch = first.windows.windows(torch.tensor([[0, 50, 90]]), config.context_steps)
    first.learn(batch)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        assert second.learn(batch).item() == first.learn(batch).item()


def test_windows_stay_within_their_set(at_once):
    data = datasets.load("hopper-mixed")
    windows = at_once.Windows([data, data], [1, 0, 1], "cpu")
    begin = windows.first[:, 0]
    assert begin.tolist() == [data.num_steps, 0, data.num_steps]
    batch = windows.draw(rows=200, steps=20)
    assert batch["valid"][..., 0].all() and batch["valid"].float().mean() < 1
    first = windows.windows(begin[:, None], 3)
    assert first["timestep"].tolist() == [[[0, 1, 2]]] * 3
    torch.testing.assert_close(first["action"][1, 0], torch.tensor(data.actions[:3]))
