"""Probes at evaluations: in TensorBoard, and without a trace in the training."""

from pathlib import Path

import pytest
import torch
from planted import new_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decision_s4 import train
from decision_s4.agents.probes.gradients import GradientTimesInput
from decision_s4.agents.training import TrainConfig, Training
from decision_s4.envs.errors import UserError

TINY = (
    "--steps 4 --eval-every 2 --eval-episodes 1 --batch-steps 50 --no-video --d-model 8 "
    "--d-embed 8 --n-layers 1 --backbone-options d_state=4 --threads 1 --device cpu --dropout .1"
)
SMALL = {"batch_steps": 50, "d_model": 8, "d_embed": 8, "n_layers": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DECISION_S4_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/4/weights.safetensors").read_bytes()


def test_training_is_the_same_with_probes_and_without(tmp_path):
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    assert train.main([*TINY.split(), "--run-dir", str(plain)]) == 0
    flags = ["--probes", "gradient-x-input", "--run-dir", str(probed)]
    assert train.main([*TINY.split(), *flags]) == 0
    assert weights(plain) == weights(probed)
    events = EventAccumulator(str(probed)).Reload()
    steps = [event.step for event in events.Scalars("probe/gradient-x-input/deletion_over_random")]
    assert steps == [2, 4]
    assert "probe/gradient-x-input" in events.Tags()["images"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradient", "probe 'gradient' is unknown; did you mean"),
        ("occlusion", "probe 'occlusion' is too slow for every evaluation"),
    ],
)
def test_bad_probes_end_before_training(name, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert train.main([*TINY.split(), "--probes", name, "--run-dir", str(run_dir)]) == 2
    assert message in capsys.readouterr().err
    assert not run_dir.exists()


def test_attached_probes_are_logged_and_change_nothing(tmp_path):
    config = TrainConfig(**SMALL)
    training, other = (Training.begin(config, torch.device("cpu")) for _ in range(2))
    lrp, made = training.learner.policy.attach("lrp", GradientTimesInput())
    assert training.learner.policy.probes == [lrp, made]
    for each in (training, other):
        each.update()
    states = [each.learner.policy.state_dict() for each in (training, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    logged = Logged()
    other.explain(logged)
    assert logged.names == set()
    training.explain(logged)
    assert {"probe/lrp", "probe/gradient-x-input", "probe/lrp/deletion"} <= logged.names


class Logged:
    """A logger that keeps what it was given names for."""

    def __init__(self):
        self.names = set()

    def log(self, step, scalars):
        self.names |= set(scalars)

    def figure(self, name, figure, step):
        self.names.add(name)


def test_a_probe_that_cannot_serve_is_not_attached():
    policy = new_policy("s4", tokens="observation")
    for name, message in {
        "rollout": "probe 'rollout' reads layers",
        "lpr": "'lpr' is unknown",
    }.items():
        with pytest.raises(UserError, match=message):
            policy.attach(name)
    assert policy.probes == []
